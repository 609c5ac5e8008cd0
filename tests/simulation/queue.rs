//! The discrete-event queue: what happens next, and when. Equal times keep the order in which they were scheduled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use lastword::time::Instant;

/// Actions in the order of their time. The heap moves only keys; actions stay in their slots.
#[derive(Debug)]
pub(crate) struct Queue<A> {
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<A>>,
    free: Vec<usize>,
    scheduled: u64,
}

impl<A> Default for Queue<A> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), scheduled: 0 }
    }
}

impl<A> Queue<A> {
    /// Schedules an action.
    pub(crate) fn push(&mut self, at: Instant, action: A) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(action);
                slot
            }
            None => {
                self.slots.push(Some(action));
                self.slots.len() - 1
            }
        };
        self.scheduled += 1;
        self.heap.push(Reverse((at.as_nanos(), self.scheduled, slot)));
    }

    /// Takes the next action that is due at or before `until`.
    pub(crate) fn pop(&mut self, until: Instant) -> Option<(Instant, A)> {
        let &Reverse((at, _, slot)) = self.heap.peek()?;
        if at > until.as_nanos() {
            return None;
        }
        self.heap.pop();
        self.free.push(slot);
        let action = self.slots[slot].take().expect("a scheduled slot is filled");
        Some((Instant::from_nanos(at), action))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_come_out_by_time_then_by_order_of_scheduling() {
        let mut queue = Queue::default();
        for (at, name) in [(5, "b"), (1, "a"), (5, "c"), (9, "late")] {
            queue.push(Instant::from_nanos(at), name);
        }
        let mut out = Vec::new();
        while let Some((at, name)) = queue.pop(Instant::from_nanos(8)) {
            out.push((at.as_nanos(), name));
        }
        assert_eq!(out, [(1, "a"), (5, "b"), (5, "c")]);
        queue.push(Instant::from_nanos(9), "later");
        assert_eq!(queue.pop(Instant::from_nanos(9)).unwrap().1, "late");
        assert_eq!(queue.pop(Instant::from_nanos(9)).unwrap().1, "later");
    }
}
