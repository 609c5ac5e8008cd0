//! Asks for lists of accounts, or for a page of history. Nothing changes while that goes on, so that every answer is
//! known beforehand: one that lacks something counts as lost, one that has something twice as doubled.

use super::audit::Verdict;
use super::{Bench, Load, unexpected};
use crate::arguments::Mix;
use lastword::chat::command::{MessagePage, Reply};
use lastword::client::{Arrival, ClientError, Pipeline};
use lastword::config::PAGE_DEFAULT;
use lastword::message::{Request, Response};
use lastword::types::MessageId;
use std::sync::Arc;
use std::time::Instant;
use tokio::time::sleep_until;

/// Entries on the pages that are asked for, and messages in a history.
#[allow(clippy::cast_possible_truncation, reason = "a page has dozens of entries")]
const PAGE: u16 = PAGE_DEFAULT as u16;

/// A client that reads.
pub(super) struct Reading {
    pipeline: Pipeline,
    request: Request,
    expected: Expected,
    verdict: Verdict,
}

/// What every answer must be.
enum Expected {
    Names(Vec<String>),
    /// Oldest first; a page has the latest of them, as many as fit.
    Messages(Vec<MessageId>),
}

impl Load for Reading {
    async fn prepare(bench: Arc<Bench>, index: u16) -> Result<Self, ClientError> {
        let mut pipeline = bench.pipeline(bench.register(&bench.name(index, "s")).await?);
        let (request, expected) = if bench.arguments.mix == Mix::List {
            let (pattern, after) = (format!("{}*", bench.prefix), bench.prefix.clone());
            let names = (0..bench.arguments.clients.min(PAGE)).map(|index| bench.name(index, "s"));
            (Request::List { pattern, after, limit: PAGE }, Expected::Names(names.collect()))
        } else {
            let with = pipeline.session().name.clone();
            let messages = send_history(&mut pipeline, &with, usize::from(bench.arguments.size)).await?;
            (Request::History { with, before: 0, limit: PAGE }, Expected::Messages(messages))
        };
        bench.connect(&mut pipeline).await?;
        Ok(Self { pipeline, request, expected, verdict: Verdict::default() })
    }

    async fn run(mut self, bench: Arc<Bench>, end: Instant) -> Result<Self, ClientError> {
        let mut arrivals = Vec::new();
        let given_up = sleep_until((end + bench.timeout).into());
        tokio::pin!(given_up);
        loop {
            let now = Instant::now();
            while now < end && self.pipeline.in_flight() < bench.window() {
                self.pipeline.begin(self.request.clone(), now);
            }
            if self.pipeline.in_flight() == 0 {
                return Ok(self);
            }
            tokio::select! {
                result = self.pipeline.next(&mut arrivals) => result?,
                () = &mut given_up => {
                    bench.meter().give_up(self.pipeline.in_flight());
                    return Ok(self);
                }
            }
            self.on_arrivals(&bench, &mut arrivals)?;
        }
    }

    async fn finish(mut self, bench: Arc<Bench>) -> Result<Verdict, ClientError> {
        self.pipeline.abandon();
        bench.delete_account(&mut self.pipeline).await?;
        Ok(self.verdict)
    }
}

impl Reading {
    fn on_arrivals(&mut self, bench: &Bench, arrivals: &mut Vec<Arrival>) -> Result<(), ClientError> {
        let now = Instant::now();
        let mut meter = bench.meter();
        for arrival in arrivals.drain(..) {
            let Arrival::Answer(answer) = arrival else { continue };
            let verdict = match (&self.expected, &answer.response) {
                (Expected::Names(names), Response::Accounts(page)) => compare(names, &page.names),
                (Expected::Messages(messages), Response::Messages(page)) => compare_page(messages, page),
                (_, response) => return Err(unexpected(&self.pipeline, response, "a page")),
            };
            self.verdict = [self.verdict, verdict].into_iter().sum();
            meter.acknowledge(answer.begun, now);
        }
        Ok(())
    }
}

/// Fills a history of an account with itself, one page long.
async fn send_history(
    pipeline: &mut Pipeline,
    with: &str,
    bytes: usize,
) -> Result<Vec<MessageId>, ClientError> {
    let mut messages = Vec::new();
    for _ in 0..PAGE {
        let request = Request::Send { to: with.to_owned(), text: "x".repeat(bytes) };
        match pipeline.ask(request).await? {
            Response::Done { reply: Reply::Sent { message, .. }, .. } => messages.push(message),
            response => return Err(unexpected(pipeline, &response, "sent")),
        }
    }
    Ok(messages)
}

/// What is wrong with one answer: it counts once, however much of it is wrong.
fn compare<T: PartialEq>(expected: &[T], found: &[T]) -> Verdict {
    if expected == found {
        return Verdict::default();
    }
    let count = |entry: &T| found.iter().filter(|found| *found == entry).count();
    Verdict {
        lost: u64::from(expected.iter().any(|entry| count(entry) == 0)),
        doubled: u64::from(found.iter().any(|entry| count(entry) > 1 || !expected.contains(entry))),
    }
}

/// Long texts may leave the oldest messages to the next page; that there is one must be said.
fn compare_page(expected: &[MessageId], page: &MessagePage) -> Verdict {
    let found: Vec<MessageId> = page.messages.iter().map(|message| message.id).collect();
    let fits = if page.more { found.len().clamp(1, expected.len()) } else { expected.len() };
    compare(&expected[expected.len() - fits..], &found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastword::chat::command::MessageView;
    use lastword::types::{ClientId, RequestId, RequestNumber};

    fn id(number: u64) -> MessageId {
        MessageId(RequestId { client: ClientId(7), number: RequestNumber(number) })
    }

    fn page(numbers: &[u64], more: bool) -> MessagePage {
        let message = |&number: &u64| MessageView {
            id: id(number),
            from: "a".into(),
            to: "a".into(),
            unix_ms: 0,
            delivered: false,
            late: false,
            cursor: number,
            text: "x".into(),
        };
        MessagePage { messages: numbers.iter().map(message).collect(), more }
    }

    #[test]
    fn an_answer_that_lacks_something_is_lost_and_one_that_repeats_something_is_doubled() {
        let right = Verdict::default();
        assert_eq!(compare(&["a", "b"], &["a", "b"]), right);
        assert_eq!(compare(&["a", "b"], &["b"]), Verdict { lost: 1, doubled: 0 });
        assert_eq!(compare(&["a", "b"], &["a", "b", "b"]), Verdict { lost: 0, doubled: 1 });
        assert_eq!(compare(&["a", "b"], &["a", "a"]), Verdict { lost: 1, doubled: 1 });
        assert_eq!(compare(&["a"], &["a", "stranger"]), Verdict { lost: 0, doubled: 1 });
    }

    #[test]
    fn a_page_may_be_short_if_it_says_so() {
        let expected = [id(1), id(2), id(3)];
        let lost = Verdict { lost: 1, doubled: 0 };
        assert_eq!(compare_page(&expected, &page(&[1, 2, 3], false)), Verdict::default());
        assert_eq!(compare_page(&expected, &page(&[2, 3], true)), Verdict::default());
        assert_eq!(compare_page(&expected, &page(&[2, 3], false)), lost);
        assert_eq!(compare_page(&expected, &page(&[], true)), lost);
        assert_eq!(compare_page(&expected, &page(&[1, 2], true)).lost, 1);
    }
}
