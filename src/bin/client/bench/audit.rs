//! Whether what was acknowledged is there, and once.

use std::iter::Sum;

/// What is wrong with what was acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Acknowledged, and not there.
    pub(super) lost: u64,
    /// There more than once.
    pub(super) doubled: u64,
}

impl Sum for Verdict {
    fn sum<I: Iterator<Item = Self>>(verdicts: I) -> Self {
        verdicts.fold(Self::default(), |sum, verdict| Self {
            lost: sum.lost + verdict.lost,
            doubled: sum.doubled + verdict.doubled,
        })
    }
}

/// What is known of one message. Messages are told apart by the numbers of the requests that sent them.
#[derive(Clone, Copy, Default)]
struct Fate {
    /// The sender was told that it is sent.
    sent: bool,
    /// The recipient has got it.
    received: bool,
    /// The recipient was told to take it out of the mailbox …
    taking_out: bool,
    /// … and that this is done.
    taken_out: bool,
    /// The recipient got it although it was taken out.
    received_again: bool,
    in_history: u8,
    in_mailbox: u8,
}

/// The fates of all messages from one account to another, which nobody else writes to.
#[derive(Default)]
pub(super) struct Audit {
    fates: Vec<Fate>,
    /// Found messages that no request stands for.
    strange: u64,
}

impl Audit {
    /// A request that sends a message is begun.
    pub(super) fn begin(&mut self, number: u32) {
        let at = number as usize;
        if self.fates.len() <= at {
            self.fates.resize(at + 1, Fate::default());
        }
    }

    /// It is acknowledged.
    pub(super) fn acknowledge(&mut self, number: u32) {
        self.fates[number as usize].sent = true;
    }

    /// Whether it is.
    pub(super) fn is_sent(&self, number: u32) -> bool {
        self.fates[number as usize].sent
    }

    /// Whether the recipient has got it.
    pub(super) fn is_received(&self, number: u32) -> bool {
        self.fates[number as usize].received
    }

    /// The recipient has got a message; whether for the first time.
    pub(super) fn receive(&mut self, number: Option<u32>) -> bool {
        let Some(fate) = self.fate(number) else { return false };
        fate.received_again |= fate.taken_out;
        !std::mem::replace(&mut fate.received, true)
    }

    /// The recipient begins to take it out of the mailbox.
    pub(super) fn begin_to_take_out(&mut self, number: u32) {
        self.fates[number as usize].taking_out = true;
    }

    /// That is acknowledged.
    pub(super) fn take_out(&mut self, number: u32) {
        self.fates[number as usize].taken_out = true;
    }

    /// It stands in the history.
    pub(super) fn find_in_history(&mut self, number: Option<u32>) {
        if let Some(fate) = self.fate(number) {
            fate.in_history = fate.in_history.saturating_add(1);
        }
    }

    /// It waits in the mailbox.
    pub(super) fn find_in_mailbox(&mut self, number: Option<u32>) {
        if let Some(fate) = self.fate(number) {
            fate.in_mailbox = fate.in_mailbox.saturating_add(1);
        }
    }

    /// The fate of a message that was found; one that was never sent, or under an unknown id, is counted as strange.
    fn fate(&mut self, number: Option<u32>) -> Option<&mut Fate> {
        let fate = number.and_then(|number| self.fates.get_mut(number as usize));
        self.strange += u64::from(fate.is_none());
        fate
    }

    /// What is wrong. A message that nobody sent is the second copy of one that somebody sent.
    pub(super) fn verdict(&self) -> Verdict {
        Verdict {
            lost: self.fates.iter().filter(|fate| fate.is_lost()).count() as u64,
            doubled: self.strange + self.fates.iter().filter(|fate| fate.is_doubled()).count() as u64,
        }
    }
}

impl Fate {
    /// What was sent stands in the history, and waits until it is taken out; what was taken out waits no more.
    fn is_lost(&self) -> bool {
        let message = self.sent && (self.in_history == 0 || !self.taking_out && self.in_mailbox == 0);
        message || self.taken_out && self.in_mailbox > 0
    }

    fn is_doubled(&self) -> bool {
        self.in_history > 1 || self.in_mailbox > 1 || self.received_again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three messages are sent and acknowledged; the third is received, and taken out.
    fn audit() -> Audit {
        let mut audit = Audit::default();
        for number in 2..5 {
            audit.begin(number);
            audit.acknowledge(number);
        }
        assert!(audit.receive(Some(4)));
        audit.begin_to_take_out(4);
        audit.take_out(4);
        audit
    }

    fn find(audit: &mut Audit, history: &[u32], mailbox: &[u32]) -> Verdict {
        history.iter().for_each(|&number| audit.find_in_history(Some(number)));
        mailbox.iter().for_each(|&number| audit.find_in_mailbox(Some(number)));
        audit.verdict()
    }

    #[test]
    fn nothing_is_wrong_when_everything_is_there_once() {
        assert_eq!(find(&mut audit(), &[2, 3, 4], &[2, 3]), Verdict::default());
    }

    #[test]
    fn what_is_missing_anywhere_is_lost() {
        assert_eq!(find(&mut audit(), &[2, 4], &[2, 3]), Verdict { lost: 1, doubled: 0 });
        assert_eq!(find(&mut audit(), &[2, 3, 4], &[3]), Verdict { lost: 1, doubled: 0 });
        assert_eq!(find(&mut audit(), &[], &[]), Verdict { lost: 3, doubled: 0 });
    }

    #[test]
    fn what_is_there_twice_is_doubled() {
        assert_eq!(find(&mut audit(), &[2, 3, 3, 4], &[2, 3]), Verdict { lost: 0, doubled: 1 });
        assert_eq!(find(&mut audit(), &[2, 3, 4], &[2, 2, 3, 3]), Verdict { lost: 0, doubled: 2 });
        let mut audit = audit();
        audit.find_in_history(None);
        audit.find_in_mailbox(Some(77));
        assert_eq!(find(&mut audit, &[2, 3, 4], &[2, 3]), Verdict { lost: 0, doubled: 2 });
    }

    #[test]
    fn what_was_taken_out_and_still_waits_or_comes_again_is_wrong() {
        assert_eq!(find(&mut audit(), &[2, 3, 4], &[2, 3, 4]), Verdict { lost: 1, doubled: 0 });
        let mut audit = audit();
        assert!(!audit.receive(Some(4)));
        assert_eq!(find(&mut audit, &[2, 3, 4], &[2, 3]), Verdict { lost: 0, doubled: 1 });
    }

    #[test]
    fn what_was_never_acknowledged_may_be_there_or_not() {
        for there in [true, false] {
            let mut audit = audit();
            audit.begin(5);
            let numbers: &[u32] = if there { &[5] } else { &[] };
            assert_eq!(find(&mut audit, numbers, numbers).doubled, 0);
            assert_eq!(find(&mut audit, &[2, 3, 4], &[2, 3]), Verdict::default());
        }
    }

    #[test]
    fn a_message_may_come_again_until_it_is_taken_out() {
        let mut audit = audit();
        assert!(audit.receive(Some(3)));
        assert!(!audit.receive(Some(3)));
        assert_eq!(find(&mut audit, &[2, 3, 4], &[2, 3]), Verdict::default());
    }
}
