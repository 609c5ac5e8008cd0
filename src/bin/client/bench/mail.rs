//! Sends messages; in deliver, the recipient is connected, gets them pushed, and acknowledges what comes in one moment
//! together, as `listen` does.

use super::audit::{Audit, Verdict};
use super::{Bench, Load, unexpected};
use crate::arguments::Mix;
use lastword::chat::command::{MessageView, Reply};
use lastword::client::{ACKNOWLEDGE_WITHIN, Answer, Arrival, ClientError, Pipeline};
use lastword::config::{IDS_PER_REQUEST_MAX, MAILBOX_MESSAGES_MAX, PAGE_MAX};
use lastword::message::{ErrorCode, Request, Response};
use lastword::types::{MessageId, RequestId, RequestNumber};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio::time::sleep_until;

/// In send, so many messages wait before the recipient begins to take out the oldest, for a mailbox has a limit.
const WAITING_MAX: usize = MAILBOX_MESSAGES_MAX / 2;
/// The pages that are asked for.
#[allow(clippy::cast_possible_truncation, reason = "a page has hundreds of entries")]
const PAGE: u16 = PAGE_MAX as u16;

/// A sender and its recipient, who have an account each.
pub(super) struct Mail {
    sender: Pipeline,
    recipient: Pipeline,
    delivers: bool,
    /// In deliver: what the recipient has got and not acknowledged, and until when it may wait for more.
    received: Vec<u32>,
    acknowledge_at: Option<Instant>,
    traffic: Traffic,
}

/// What is on its way from one to the other.
#[derive(Default)]
struct Traffic {
    audit: Audit,
    /// When each message was begun, by its number; none: it is finished, or was never begun.
    begun: Vec<Option<Instant>>,
    unfinished: usize,
    /// Messages that are being taken out of the mailbox.
    leaving: usize,
    /// In send: messages that wait in the mailbox, oldest first.
    waiting: VecDeque<u32>,
}

impl Load for Mail {
    async fn prepare(bench: Arc<Bench>, index: u16) -> Result<Self, ClientError> {
        let sender = bench.register(&bench.name(index, "s")).await?;
        let recipient = bench.register(&bench.name(index, "r")).await?;
        let delivers = bench.arguments.mix == Mix::Deliver;
        let (mut sender, mut recipient) = (bench.pipeline(sender), bench.pipeline(recipient));
        bench.connect(&mut sender).await?;
        if delivers {
            recipient.subscribe();
            bench.connect(&mut recipient).await?;
        }
        let (received, acknowledge_at, traffic) = (Vec::new(), None, Traffic::default());
        Ok(Self { sender, recipient, delivers, received, acknowledge_at, traffic })
    }

    async fn run(mut self, bench: Arc<Bench>, end: Instant) -> Result<Self, ClientError> {
        let (mut from_sender, mut from_recipient) = (Vec::new(), Vec::new());
        let given_up = end + bench.timeout;
        let bell = sleep_until(end.into());
        tokio::pin!(bell);
        let mut ended = false;
        loop {
            if !ended {
                self.send(&bench);
            } else if self.traffic.unfinished == 0 && self.received.is_empty() && self.traffic.leaving == 0 {
                return Ok(self);
            }
            let (sends, receives) = (self.sender.in_flight() > 0, self.recipient.in_flight() > 0);
            let acknowledge_at = self.acknowledge_at.unwrap_or(end);
            tokio::select! {
                result = self.sender.next(&mut from_sender), if sends => {
                    result?;
                    self.on_sender(&bench, &mut from_sender)?;
                }
                result = self.recipient.next(&mut from_recipient), if receives || self.delivers => {
                    result?;
                    self.on_recipient(&bench, &mut from_recipient)?;
                }
                () = sleep_until(acknowledge_at.into()), if self.acknowledge_at.is_some() => {
                    self.acknowledge_received(Instant::now());
                }
                () = &mut bell => {
                    if ended {
                        bench.meter().give_up(self.traffic.unfinished);
                        return Ok(self);
                    }
                    ended = true;
                    bell.as_mut().reset(given_up.into());
                }
            }
        }
    }

    async fn finish(mut self, bench: Arc<Bench>) -> Result<Verdict, ClientError> {
        self.sender.abandon();
        self.recipient.abandon();
        self.find_in_history().await?;
        self.find_in_mailbox().await?;
        bench.delete_account(&mut self.sender).await?;
        bench.delete_account(&mut self.recipient).await?;
        Ok(self.traffic.audit.verdict())
    }
}

impl Mail {
    /// Sends until the window is full.
    fn send(&mut self, bench: &Bench) {
        let now = Instant::now();
        let traffic = &mut self.traffic;
        let waiting = self.received.len() + traffic.leaving + traffic.waiting.len();
        while traffic.unfinished < bench.window()
            && waiting + traffic.unfinished < MAILBOX_MESSAGES_MAX
            && self.sender.has_room()
        {
            let to = self.recipient.session().name.clone();
            let text = text(traffic.begun.len(), usize::from(bench.arguments.size));
            let number = self.sender.begin(Request::Send { to, text }, now);
            traffic.begin(number, now);
        }
    }

    fn on_sender(&mut self, bench: &Bench, arrivals: &mut Vec<Arrival>) -> Result<(), ClientError> {
        let now = Instant::now();
        let mut meter = bench.meter();
        let client = self.sender.session().client;
        for arrival in arrivals.drain(..) {
            let Arrival::Answer(Answer { number, response, .. }) = arrival else { continue };
            let id = MessageId(RequestId { client, number: RequestNumber(u64::from(number)) });
            match response {
                Response::Done { reply: Reply::Sent { message, .. }, .. } if message == id => {
                    self.traffic.audit.acknowledge(number);
                    if !self.delivers {
                        self.traffic.waiting.push_back(number);
                    }
                    if let Some(begun) = self.traffic.finish_if_done(number, self.delivers) {
                        meter.acknowledge(begun, now);
                    }
                }
                Response::Error(error) if error.code == ErrorCode::ReplyForgotten => {
                    self.traffic.finish(number);
                    meter.give_up(1);
                }
                response => return Err(unexpected(&self.sender, &response, "sent")),
            }
        }
        drop(meter);
        self.maybe_empty_mailbox(now);
        Ok(())
    }

    /// In send nobody reads the mailbox; yet it must not get full.
    fn maybe_empty_mailbox(&mut self, now: Instant) {
        if self.traffic.waiting.len() >= WAITING_MAX && self.recipient.in_flight() == 0 {
            let numbers: Vec<u32> = self.traffic.waiting.drain(..IDS_PER_REQUEST_MAX).collect();
            self.take_out(&numbers, now);
        }
    }

    fn take_out(&mut self, numbers: &[u32], now: Instant) {
        let client = self.sender.session().client;
        for numbers in numbers.chunks(IDS_PER_REQUEST_MAX) {
            numbers.iter().for_each(|&number| self.traffic.audit.begin_to_take_out(number));
            self.traffic.leaving += numbers.len();
            let id =
                |&number: &u32| MessageId(RequestId { client, number: RequestNumber(u64::from(number)) });
            self.recipient.begin(Request::Acknowledge { messages: numbers.iter().map(id).collect() }, now);
        }
    }

    fn on_recipient(&mut self, bench: &Bench, arrivals: &mut Vec<Arrival>) -> Result<(), ClientError> {
        let now = Instant::now();
        for arrival in arrivals.drain(..) {
            match arrival {
                Arrival::Message(message) => self.receive(bench, &message, now),
                // What came before the subscription was not pushed.
                Arrival::Subscribed => {
                    self.recipient.begin(Request::Read { after: 0, limit: PAGE }, now);
                }
                Arrival::Answer(Answer { request: Request::Read { .. }, response, .. }) => {
                    let Response::Messages(page) = response else {
                        return Err(unexpected(&self.recipient, &response, "messages"));
                    };
                    if let Some(last) = page.messages.last().filter(|_| page.more) {
                        self.recipient.begin(Request::Read { after: last.cursor, limit: PAGE }, now);
                    }
                    page.messages.iter().for_each(|message| self.receive(bench, message, now));
                }
                Arrival::Answer(Answer { request: Request::Acknowledge { messages }, response, .. }) => {
                    let Response::Done { reply: Reply::Acknowledged { .. }, .. } = response else {
                        return Err(unexpected(&self.recipient, &response, "acknowledged"));
                    };
                    self.on_taken_out(&messages);
                }
                Arrival::Answer(_) => {}
            }
        }
        if self.received.len() >= IDS_PER_REQUEST_MAX {
            self.acknowledge_received(now);
        }
        Ok(())
    }

    /// The recipient has got a message. If it is new, it is to be acknowledged before long.
    fn receive(&mut self, bench: &Bench, message: &MessageView, now: Instant) {
        let number = self.number_of(message);
        // Also one that nobody sent is told to the audit.
        let is_new = self.traffic.audit.receive(number);
        let Some(number) = number.filter(|_| is_new) else { return };
        self.received.push(number);
        self.acknowledge_at.get_or_insert(now + ACKNOWLEDGE_WITHIN);
        if let Some(begun) = self.traffic.finish_if_done(number, self.delivers) {
            bench.meter().acknowledge(begun, now);
        }
    }

    fn acknowledge_received(&mut self, now: Instant) {
        self.acknowledge_at = None;
        let received = std::mem::take(&mut self.received);
        self.take_out(&received, now);
    }

    fn on_taken_out(&mut self, messages: &[MessageId]) {
        self.traffic.leaving -= messages.len();
        for message in messages {
            let number = number_of(*message).expect("the run's own numbers are those of requests");
            self.traffic.audit.take_out(number);
        }
    }

    /// The number of the request that sent a message; none if it is not the sender's.
    fn number_of(&self, message: &MessageView) -> Option<u32> {
        let own = message.id.0.client == self.sender.session().client;
        number_of(message.id).filter(|_| own)
    }

    async fn find_in_history(&mut self) -> Result<(), ClientError> {
        let with = self.recipient.session().name.clone();
        let mut before = 0;
        loop {
            let request = Request::History { with: with.clone(), before, limit: PAGE };
            let response = self.sender.ask(request).await?;
            let Response::Messages(page) = response else {
                return Err(unexpected(&self.sender, &response, "messages"));
            };
            for message in &page.messages {
                self.traffic.audit.find_in_history(self.number_of(message));
            }
            match page.messages.first().filter(|_| page.more) {
                Some(first) => before = first.cursor,
                None => return Ok(()),
            }
        }
    }

    async fn find_in_mailbox(&mut self) -> Result<(), ClientError> {
        let mut after = 0;
        loop {
            let response = self.recipient.ask(Request::Read { after, limit: PAGE }).await?;
            let Response::Messages(page) = response else {
                return Err(unexpected(&self.recipient, &response, "messages"));
            };
            for message in &page.messages {
                self.traffic.audit.find_in_mailbox(self.number_of(message));
            }
            match page.messages.last().filter(|_| page.more) {
                Some(last) => after = last.cursor,
                None => return Ok(()),
            }
        }
    }
}

impl Traffic {
    fn begin(&mut self, number: u32, now: Instant) {
        self.audit.begin(number);
        self.begun.resize(number as usize, None);
        self.begun.push(Some(now));
        self.unfinished += 1;
    }

    /// If the sender was told that it is sent, and in deliver the recipient has it: gives when it was begun, once.
    fn finish_if_done(&mut self, number: u32, delivers: bool) -> Option<Instant> {
        let done = self.audit.is_sent(number) && (!delivers || self.audit.is_received(number));
        if done { self.finish(number) } else { None }
    }

    /// A message is done with, or given up: gives when it was begun, once.
    fn finish(&mut self, number: u32) -> Option<Instant> {
        let begun = self.begun[number as usize].take()?;
        self.unfinished -= 1;
        Some(begun)
    }
}

fn number_of(message: MessageId) -> Option<u32> {
    u32::try_from(message.0.number.0).ok()
}

/// A text of so many bytes, which ends in a number if there is room for it.
fn text(number: usize, bytes: usize) -> String {
    let digits = number.to_string();
    let digits = &digits[digits.len().saturating_sub(bytes)..];
    let mut text = ".".repeat(bytes - digits.len());
    text.push_str(digits);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_size_that_was_asked_for() {
        assert_eq!(text(42, 5), "...42");
        assert_eq!(text(12_345, 1), "5");
        assert_eq!(text(7, 8192).len(), 8192);
    }
}
