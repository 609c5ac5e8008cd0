//! Linearizability, decided by search (Wing & Gong 1993, with Lowe's memo of what was tried already).
//!
//! A history of one object is linearizable if each call can be given one moment between its invocation and its return
//! so that the calls, one after the other in that order, answer as they did. A call without a return may have happened
//! at any moment after its invocation, or not at all. Objects are independent of each other: a history is linearizable
//! only if that of each object is.

use std::collections::HashSet;
use std::hash::Hash;

/// The return of a call that never returned.
pub(crate) const PENDING: u64 = u64::MAX;

/// What an object does, one call after the other. The call says what was answered, too.
pub(crate) trait Model {
    /// The object.
    type State: Clone + Eq + Hash;

    /// The object after this call; none if it can't have answered so.
    fn step(&self, state: &Self::State) -> Option<Self::State>;

    /// Whether the call never changes the object.
    fn is_read(&self) -> bool;
}

/// A call and when it was under way. Moments are numbered, each used once in a history.
#[derive(Clone, Debug)]
pub(crate) struct Call<M> {
    /// What was asked, and what was answered.
    pub model: M,
    /// When it was asked.
    pub invoked: u64,
    /// When it was answered, or [`PENDING`].
    pub returned: u64,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none. These calls, by their places, are those of which one had to come next where the search came
    /// furthest.
    Violated(Vec<usize>),
    /// The search was given up.
    Undecided,
}

/// Which calls have been given their moment.
type Set = Box<[u64]>;

struct Node<S> {
    taken: Set,
    state: S,
    next: Vec<usize>,
}

struct Search<'a, M: Model> {
    /// Those that returned, by invocation, then those that did not: these stay open for long, and would be in the way.
    calls: Vec<&'a Call<M>>,
    returned: usize,
    tried: HashSet<(Set, M::State)>,
    furthest: (usize, Vec<usize>),
}

/// Looks for an order of `calls`, which are sorted by invocation, in at most `steps_max` steps.
pub(crate) fn check<M: Model>(calls: &[Call<M>], begin: M::State, steps_max: usize) -> Verdict {
    assert!(calls.is_sorted_by_key(|call| call.invoked), "a history is sorted by invocation");
    let mut order: Vec<usize> = (0..calls.len()).collect();
    order.sort_by_key(|&at| calls[at].returned == PENDING);
    let mut search = Search {
        calls: order.iter().map(|&at| &calls[at]).collect(),
        returned: calls.iter().filter(|call| call.returned != PENDING).count(),
        tried: HashSet::new(),
        furthest: (0, Vec::new()),
    };
    let taken = vec![0; calls.len().div_ceil(64)].into_boxed_slice();
    let Some(first) = search.enter(taken, begin) else { return Verdict::Linearizable };
    let mut path = vec![first];
    let mut steps = 0;
    while let Some(node) = path.last_mut() {
        let Some(at) = node.next.pop() else {
            path.pop();
            continue;
        };
        let Some(state) = search.calls[at].model.step(&node.state) else { continue };
        // One that may have happened or not, and would change nothing now, is of more use later.
        if at >= search.returned && state == node.state {
            continue;
        }
        let mut taken = node.taken.clone();
        taken[at / 64] |= 1 << (at % 64);
        steps += 1;
        if steps > steps_max {
            return Verdict::Undecided;
        }
        match search.enter(taken, state) {
            Some(node) => path.push(node),
            None => return Verdict::Linearizable,
        }
    }
    Verdict::Violated(search.furthest.1.iter().map(|&at| order[at]).collect())
}

impl<M: Model> Search<'_, M> {
    /// What can come next where these calls have been taken; none if no call that returned is left.
    fn enter(&mut self, mut taken: Set, state: M::State) -> Option<Node<M::State>> {
        let mut next = self.open(&taken);
        // A read that fits now can be taken now: it changes nothing for those that follow.
        loop {
            let before = next.len();
            next.retain(|&at| {
                let call = &self.calls[at].model;
                let fits = call.is_read() && call.step(&state).is_some();
                taken[at / 64] |= u64::from(fits) << (at % 64);
                !fits
            });
            if next.len() == before {
                break;
            }
            next = self.open(&taken);
        }
        if !next.iter().any(|at| *at < self.returned) {
            return None;
        }
        let count = taken.iter().map(|word| word.count_ones() as usize).sum::<usize>();
        if count >= self.furthest.0 {
            self.furthest = (count, next.clone());
        }
        // Those that returned first are tried first.
        next.sort_unstable_by_key(|&at| std::cmp::Reverse(self.calls[at].returned));
        if !self.tried.insert((taken.clone(), state.clone())) {
            next.clear();
        }
        Some(Node { taken, state, next })
    }

    /// The calls that may come next: those invoked before any other that is left has returned.
    fn open(&self, taken: &Set) -> Vec<usize> {
        let full = taken.iter().take_while(|word| **word == u64::MAX).count() * 64;
        let (mut open, mut returned) = (Vec::new(), PENDING);
        let first = full.min(self.returned);
        for (places, pending) in [(first..self.returned, false), (self.returned..self.calls.len(), true)] {
            for at in places {
                let call = self.calls[at];
                if call.invoked > returned {
                    break;
                }
                if taken[at / 64] >> (at % 64) & 1 == 0 {
                    if !pending {
                        returned = returned.min(call.returned);
                    }
                    open.push(at);
                }
            }
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::shelf::{End, Shelf, ShelfCall};
    use lastword::prng::Prng;
    use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

    const STEPS_MAX: usize = 1_000_000;

    fn call(invoked: u64, returned: u64, model: ShelfCall) -> Call<ShelfCall> {
        Call { model, invoked, returned }
    }

    fn put(message: u32) -> ShelfCall {
        ShelfCall::Put { message, cursor: 0 }
    }

    fn see(messages: &[u32]) -> ShelfCall {
        ShelfCall::See { messages: messages.to_vec(), end: End::Oldest, more: false }
    }

    fn verdict(calls: &[Call<ShelfCall>]) -> Verdict {
        check(calls, Shelf::default(), STEPS_MAX)
    }

    fn is_refused(calls: &[Call<ShelfCall>]) -> bool {
        matches!(verdict(calls), Verdict::Violated(_))
    }

    #[test]
    fn stale_read_is_refused() {
        let history = |asked| [call(1, 3, put(1)), call(asked, 9, see(&[]))];
        assert_eq!(verdict(&history(2)), Verdict::Linearizable, "it was asked before the write returned");
        assert_eq!(verdict(&history(4)), Verdict::Violated(vec![1]));
    }

    #[test]
    fn read_that_goes_back_behind_another_is_refused() {
        let history = |second| {
            [
                call(1, PENDING, put(1)),
                call(2, 3, see(&[1])),
                call(4, 5, see(if second { &[1] } else { &[] })),
            ]
        };
        assert_eq!(verdict(&history(true)), Verdict::Linearizable);
        assert!(is_refused(&history(false)));
    }

    #[test]
    fn lost_write_is_refused_and_one_of_unknown_outcome_may_be_missing() {
        let history = |returned| [call(1, returned, put(1)), call(3, 4, put(2)), call(5, 6, see(&[2]))];
        assert!(is_refused(&history(2)));
        assert_eq!(verdict(&history(PENDING)), Verdict::Linearizable);
    }

    #[test]
    fn doubled_write_is_refused() {
        assert!(is_refused(&[call(1, 2, put(1)), call(3, 4, see(&[1, 1]))]));
        let take = |count| ShelfCall::Take { messages: vec![1], count: Some(count) };
        assert!(is_refused(&[call(1, 2, put(1)), call(3, 4, take(1)), call(5, 6, take(1))]));
        assert_eq!(
            verdict(&[call(1, 2, put(1)), call(3, 5, take(0)), call(4, 6, take(1))]),
            Verdict::Linearizable
        );
    }

    #[test]
    fn order_that_two_readers_see_differently_is_refused() {
        let history = |other: &[u32]| {
            [call(1, 9, put(1)), call(2, 10, put(2)), call(11, 12, see(&[2, 1])), call(13, 14, see(other))]
        };
        assert_eq!(verdict(&history(&[2, 1])), Verdict::Linearizable);
        assert!(is_refused(&history(&[1, 2])));
    }

    #[test]
    fn search_beyond_its_bound_is_undecided() {
        let mut calls: Vec<_> = (1..=12).map(|n| call(u64::from(n), 100, put(n))).collect();
        calls.push(call(200, 201, see(&[])));
        for (at, call) in calls.iter_mut().enumerate().take(12) {
            call.returned += at as u64;
        }
        assert_eq!(check(&calls, Shelf::default(), 1_000), Verdict::Undecided);
    }

    /// The shelf as stateright wants it: what it answers to what it is asked.
    #[derive(Clone, Debug)]
    struct Spec(Shelf);

    #[derive(Clone, Debug)]
    enum Asked {
        Put(u32),
        Take(u32),
        See,
    }

    #[derive(Clone, Debug, PartialEq)]
    enum Answered {
        Done,
        Count(u64),
        Seen(Vec<u32>),
    }

    impl SequentialSpec for Spec {
        type Op = Asked;
        type Ret = Answered;

        fn invoke(&mut self, op: &Asked) -> Answered {
            let order = &mut self.0.order;
            match op {
                Asked::Put(message) => {
                    order.push(*message);
                    Answered::Done
                }
                Asked::Take(message) => {
                    let before = order.len();
                    order.retain(|other| other != message);
                    Answered::Count((before - order.len()) as u64)
                }
                Asked::See => Answered::Seen(order.clone()),
            }
        }
    }

    fn model_of(asked: &Asked, answered: Option<&Answered>) -> ShelfCall {
        match (asked, answered) {
            (Asked::Put(message), _) => put(*message),
            (Asked::Take(message), Some(Answered::Count(count))) => {
                ShelfCall::Take { messages: vec![*message], count: Some(*count) }
            }
            (Asked::Take(message), _) => ShelfCall::Take { messages: vec![*message], count: None },
            (Asked::See, Some(Answered::Seen(messages))) => see(messages),
            (Asked::See, _) => see(&[]),
        }
    }

    /// A small history: each call takes effect between its invocation and its return, and now and then an answer is
    /// another's. Gives both testers the same calls, and what each says.
    fn compare(prng: &mut Prng) -> (bool, bool, Vec<Call<ShelfCall>>) {
        let mut theirs = LinearizabilityTester::new(Spec(Shelf::default()));
        let mut spec = Spec(Shelf::default());
        let (mut calls, mut open) = (Vec::<Call<ShelfCall>>::new(), [const { None }; 3]);
        let (mut now, mut puts) = (0, 0);
        for _ in 0..40 {
            now += 1;
            let thread = usize::try_from(prng.below(3)).expect("small");
            match &mut open[thread] {
                place @ None if calls.len() < 9 => {
                    let asked = match prng.below(5) {
                        0 | 1 => {
                            puts += 1;
                            Asked::Put(puts)
                        }
                        2 => Asked::Take(1 + u32::try_from(prng.below(3)).expect("small")),
                        _ => Asked::See,
                    };
                    theirs.on_invoke(thread, asked.clone()).expect("one call at a time");
                    calls.push(Call { model: model_of(&asked, None), invoked: now, returned: PENDING });
                    *place = Some((asked, None, calls.len() - 1));
                }
                None => {}
                Some((asked, answered @ None, _)) => *answered = Some(spec.invoke(asked)),
                Some((asked, Some(answered), at)) => {
                    if prng.chance(1, 12) {
                        *answered = match answered {
                            Answered::Done => Answered::Done,
                            Answered::Count(count) => Answered::Count(1 - (*count).min(1)),
                            Answered::Seen(seen) if prng.chance(1, 2) => {
                                seen.pop();
                                Answered::Seen(seen.clone())
                            }
                            Answered::Seen(seen) => {
                                seen.reverse();
                                Answered::Seen(seen.clone())
                            }
                        };
                    }
                    theirs.on_return(thread, answered.clone()).expect("it was asked");
                    calls[*at] =
                        Call { model: model_of(asked, Some(answered)), returned: now, ..calls[*at].clone() };
                    open[thread] = None;
                }
            }
        }
        // A read that never returned says nothing.
        calls.retain(|call| call.returned != PENDING || !call.model.is_read());
        (verdict(&calls) == Verdict::Linearizable, theirs.is_consistent(), calls)
    }

    #[test]
    fn another_checker_agrees_on_thousands_of_small_histories() {
        let mut prng = Prng::new(0x11ea);
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..4_000 {
            let (ours, theirs, calls) = compare(&mut prng);
            assert_eq!(ours, theirs, "the two testers do not agree on {calls:#?}");
            if ours { accepted += 1 } else { refused += 1 }
        }
        assert!(accepted > 500 && refused > 500, "{accepted} accepted, {refused} refused");
    }
}
