//! The frames between a client and a server.

use bytes::{BufMut, BytesMut};

use super::codec::{Frame, write_frame};
use super::field::{
    DecodeError, Reader, put_id, put_list, put_message_ids, put_string, put_strings, put_view,
};
use super::opcode;
use crate::chat::command::{
    AccountPage, ConflictPage, ConflictView, MessagePage, MessageView, Refusal, Reply,
};
use crate::message::{ErrorCode, ErrorResponse, Push, Request, Response, Status};
use crate::types::{AccountId, MessageId};

/// Bit of an error's flags: the same request may succeed later or at another server.
pub const FLAG_RETRIABLE: u8 = 1;
/// Bit of an error's flags: the request may have been executed although it failed.
pub const FLAG_MAYBE_EXECUTED: u8 = 2;

/// Longest text of an error, in bytes; the rest is cut off. It may repeat what the client sent, and an answer must
/// stay within the frame that a client expects.
pub const ERROR_TEXT_BYTES_MAX: usize = 1024;

/// The shortest message on a page: its id, three empty strings, time, flag and cursor.
const MESSAGE_BYTES_MIN: usize = 39;

/// The shortest conflict on a page: cursor, id, time, and five empty strings.
const CONFLICT_BYTES_MIN: usize = 42;

/// What a client hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromServer {
    /// The answer to the request with the frame's request id.
    Response(Response),
    /// Something that was not asked for.
    Push(Push),
}

/// Appends a request.
pub fn encode_request(out: &mut BytesMut, request: u32, body: &Request) {
    write_frame(out, request_opcode(body), request, |out| match body {
        Request::Register { name, password, client, token }
        | Request::Login { name, password, client, token } => {
            put_string(out, name);
            put_string(out, password);
            out.put_u64(client.0);
            out.extend_from_slice(token);
        }
        Request::Resume { client, token } => {
            out.put_u64(client.0);
            out.extend_from_slice(token);
        }
        Request::Logout { everywhere } => out.put_u8(u8::from(*everywhere)),
        Request::DeleteAccount { password } => put_string(out, password),
        Request::ChangePassword { password, new_password } => {
            put_string(out, password);
            put_string(out, new_password);
        }
        Request::List { pattern, after, limit } => {
            put_string(out, pattern);
            put_string(out, after);
            out.put_u16(*limit);
        }
        Request::Send { to, text } => {
            put_string(out, to);
            put_string(out, text);
        }
        Request::Read { after, limit } | Request::Conflicts { after, limit } => {
            out.put_u64(*after);
            out.put_u16(*limit);
        }
        Request::Acknowledge { messages } | Request::Delete { messages } => put_message_ids(out, messages),
        Request::History { with, before, limit } => {
            put_string(out, with);
            out.put_u64(*before);
            out.put_u16(*limit);
        }
        Request::Seen { acknowledged, view } => {
            out.put_u32(*acknowledged);
            put_view(out, *view);
        }
        Request::Subscribe | Request::Status | Request::Ping => {}
    });
}

const fn request_opcode(body: &Request) -> u8 {
    match body {
        Request::Register { .. } => opcode::REGISTER,
        Request::Login { .. } => opcode::LOGIN,
        Request::Resume { .. } => opcode::RESUME,
        Request::Logout { .. } => opcode::LOGOUT,
        Request::DeleteAccount { .. } => opcode::DELETE_ACCOUNT,
        Request::ChangePassword { .. } => opcode::CHANGE_PASSWORD,
        Request::List { .. } => opcode::LIST,
        Request::Send { .. } => opcode::SEND,
        Request::Read { .. } => opcode::READ,
        Request::Acknowledge { .. } => opcode::ACKNOWLEDGE,
        Request::Delete { .. } => opcode::DELETE,
        Request::History { .. } => opcode::HISTORY,
        Request::Subscribe => opcode::SUBSCRIBE,
        Request::Conflicts { .. } => opcode::CONFLICTS,
        Request::Status => opcode::STATUS,
        Request::Ping => opcode::PING,
        Request::Seen { .. } => opcode::SEEN,
    }
}

/// Reads a request.
///
/// # Errors
/// What is wrong with the frame; [`DecodeError::code`] says it to the client.
pub fn decode_request(frame: &Frame) -> Result<Request, DecodeError> {
    let mut reader = Reader::new(frame);
    let r = &mut reader;
    let request = match frame.opcode {
        opcode::REGISTER => Request::Register {
            name: r.string("name")?,
            password: r.string("password")?,
            client: r.client("client")?,
            token: r.array("token")?,
        },
        opcode::LOGIN => Request::Login {
            name: r.string("name")?,
            password: r.string("password")?,
            client: r.client("client")?,
            token: r.array("token")?,
        },
        opcode::RESUME => Request::Resume { client: r.client("client")?, token: r.array("token")? },
        opcode::LOGOUT => Request::Logout { everywhere: r.bool("everywhere")? },
        opcode::DELETE_ACCOUNT => Request::DeleteAccount { password: r.string("password")? },
        opcode::CHANGE_PASSWORD => Request::ChangePassword {
            password: r.string("password")?,
            new_password: r.string("new password")?,
        },
        opcode::LIST => {
            Request::List { pattern: r.string("pattern")?, after: r.string("after")?, limit: r.u16("limit")? }
        }
        opcode::SEND => Request::Send { to: r.string("to")?, text: r.string("text")? },
        opcode::READ => Request::Read { after: r.u64("after")?, limit: r.u16("limit")? },
        opcode::ACKNOWLEDGE => Request::Acknowledge { messages: r.message_ids("messages")? },
        opcode::DELETE => Request::Delete { messages: r.message_ids("messages")? },
        opcode::HISTORY => {
            Request::History { with: r.string("with")?, before: r.u64("before")?, limit: r.u16("limit")? }
        }
        opcode::SUBSCRIBE => Request::Subscribe,
        opcode::CONFLICTS => Request::Conflicts { after: r.u64("after")?, limit: r.u16("limit")? },
        opcode::STATUS => Request::Status,
        opcode::PING => Request::Ping,
        opcode::SEEN => Request::Seen { acknowledged: r.u32("acknowledged")?, view: r.view("view")? },
        opcode => return Err(DecodeError::UnknownOpcode { opcode, expected: "a request" }),
    };
    reader.finish()?;
    Ok(request)
}

/// Appends a response. A [`Reply::Refused`] travels as the error it stands for.
pub fn encode_response(out: &mut BytesMut, request: u32, response: &Response) {
    match response {
        Response::Done { reply: Reply::Refused(refusal), .. } => {
            let error = refusal_error(*refusal);
            write_frame(out, opcode::ERROR, request, |out| put_error(out, &error));
        }
        Response::Done { reply, client, view, copies, configured } => {
            write_frame(out, opcode::DONE, request, |out| {
                out.put_u64(client.0);
                put_view(out, *view);
                out.put_u8(*copies);
                out.put_u8(*configured);
                put_reply(out, reply);
            });
        }
        Response::Resumed { account, name, waiting, view } => {
            write_frame(out, opcode::RESUMED, request, |out| {
                put_id(out, account.0);
                put_string(out, name);
                out.put_u64(*waiting);
                put_view(out, *view);
            });
        }
        Response::Messages(page) => write_frame(out, opcode::MESSAGES, request, |out| {
            out.put_u8(u8::from(page.more));
            put_list(out, &page.messages, put_message);
        }),
        Response::Accounts(page) => write_frame(out, opcode::ACCOUNTS, request, |out| {
            put_string(out, page.next.as_deref().unwrap_or_default());
            put_strings(out, &page.names);
        }),
        Response::Conflicts(page) => write_frame(out, opcode::CONFLICTS_ARE, request, |out| {
            out.put_u8(u8::from(page.more));
            put_list(out, &page.conflicts, put_conflict);
        }),
        Response::Subscribed => write_frame(out, opcode::SUBSCRIBED, request, |_| {}),
        Response::Status(status) => {
            write_frame(out, opcode::STATUS_IS, request, |out| put_status(out, status));
        }
        Response::Pong => write_frame(out, opcode::PONG, request, |_| {}),
        Response::Error(error) => write_frame(out, opcode::ERROR, request, |out| put_error(out, error)),
    }
}

/// Appends a push.
pub fn encode_push(out: &mut BytesMut, push: &Push) {
    match push {
        Push::Message(message) => {
            write_frame(out, opcode::PUSH_MESSAGE, 0, |out| put_message(out, message));
        }
        Push::SessionEnded => write_frame(out, opcode::PUSH_SESSION_ENDED, 0, |_| {}),
    }
}

/// Reads what a server said.
///
/// # Errors
/// What is wrong with the frame.
pub fn decode_from_server(frame: &Frame) -> Result<FromServer, DecodeError> {
    let mut reader = Reader::new(frame);
    let r = &mut reader;
    let response = match frame.opcode {
        opcode::PUSH_MESSAGE => {
            let message = read_message(r)?;
            reader.finish()?;
            return Ok(FromServer::Push(Push::Message(message)));
        }
        opcode::PUSH_SESSION_ENDED => {
            reader.finish()?;
            return Ok(FromServer::Push(Push::SessionEnded));
        }
        opcode::DONE => {
            let client = r.client("client")?;
            let view = r.view("view")?;
            let (copies, configured) = (r.u8("copies")?, r.u8("configured")?);
            Response::Done { reply: read_reply(r)?, client, view, copies, configured }
        }
        opcode::RESUMED => Response::Resumed {
            account: AccountId(r.id("account")?),
            name: r.string("name")?,
            waiting: r.u64("waiting")?,
            view: r.view("view")?,
        },
        opcode::MESSAGES => {
            let more = r.bool("more")?;
            let messages = r.list("messages", MESSAGE_BYTES_MIN, read_message)?;
            Response::Messages(MessagePage { messages, more })
        }
        opcode::ACCOUNTS => {
            let next = Some(r.string("next")?).filter(|name| !name.is_empty());
            Response::Accounts(AccountPage { names: r.strings("names")?, next })
        }
        opcode::CONFLICTS_ARE => {
            let more = r.bool("more")?;
            let conflicts = r.list("conflicts", CONFLICT_BYTES_MIN, read_conflict)?;
            Response::Conflicts(ConflictPage { conflicts, more })
        }
        opcode::SUBSCRIBED => Response::Subscribed,
        opcode::STATUS_IS => Response::Status(read_status(r)?),
        opcode::PONG => Response::Pong,
        opcode::ERROR => Response::Error(read_error(r)?),
        opcode => return Err(DecodeError::UnknownOpcode { opcode, expected: "a response or a push" }),
    };
    reader.finish()?;
    Ok(FromServer::Response(response))
}

/// What a reply says after the opcode of the request it belongs to.
fn put_reply(out: &mut BytesMut, reply: &Reply) {
    match reply {
        Reply::Registered { account } => {
            out.put_u8(opcode::REGISTER);
            put_id(out, account.0);
        }
        Reply::LoggedIn { account, waiting } => {
            out.put_u8(opcode::LOGIN);
            put_id(out, account.0);
            out.put_u64(*waiting);
        }
        Reply::LoggedOut => out.put_u8(opcode::LOGOUT),
        Reply::AccountDeleted => out.put_u8(opcode::DELETE_ACCOUNT),
        Reply::PasswordChanged => out.put_u8(opcode::CHANGE_PASSWORD),
        Reply::Sent { message, unix_ms } => {
            out.put_u8(opcode::SEND);
            put_id(out, message.0);
            out.put_u64(*unix_ms);
        }
        Reply::Acknowledged { count } => {
            out.put_u8(opcode::ACKNOWLEDGE);
            out.put_u64(*count);
        }
        Reply::Deleted { count } => {
            out.put_u8(opcode::DELETE);
            out.put_u64(*count);
        }
        Reply::Refused(_) => unreachable!("a refusal travels as an error: see encode_response"),
    }
}

fn read_reply(r: &mut Reader<'_>) -> Result<Reply, DecodeError> {
    let offset = r.offset();
    Ok(match r.u8("done")? {
        opcode::REGISTER => Reply::Registered { account: AccountId(r.id("account")?) },
        opcode::LOGIN => Reply::LoggedIn { account: AccountId(r.id("account")?), waiting: r.u64("waiting")? },
        opcode::LOGOUT => Reply::LoggedOut,
        opcode::DELETE_ACCOUNT => Reply::AccountDeleted,
        opcode::CHANGE_PASSWORD => Reply::PasswordChanged,
        opcode::SEND => Reply::Sent { message: MessageId(r.id("message")?), unix_ms: r.u64("time")? },
        opcode::ACKNOWLEDGE => Reply::Acknowledged { count: r.u64("count")? },
        opcode::DELETE => Reply::Deleted { count: r.u64("count")? },
        found => {
            let expected = "the opcode of a request that is answered by DONE";
            return Err(DecodeError::Value { field: "done", offset, found: u64::from(found), expected });
        }
    })
}

/// The error that a refusal of the state machine is to a client.
fn refusal_error(refusal: Refusal) -> ErrorResponse {
    let (code, text) = match refusal {
        Refusal::NameTaken => (ErrorCode::NameTaken, "another account has this name"),
        Refusal::ClientIdTaken => (ErrorCode::ClientIdTaken, "another account uses this client id"),
        Refusal::NoSuchAccount => (ErrorCode::NoSuchAccount, "the account does not exist"),
        Refusal::NoSuchMessage => {
            (ErrorCode::NoSuchMessage, "found none of these messages among the account's")
        }
        Refusal::MailboxFull => (ErrorCode::MailboxFull, "the recipient's mailbox is full"),
        Refusal::SessionExpired => (ErrorCode::SessionExpired, "the session has ended; log in"),
        Refusal::PasswordChanged => (ErrorCode::WrongPassword, "the password was changed meanwhile"),
        Refusal::Conflict => (
            ErrorCode::Conflict,
            "it does not fit what was done on the other side of a split: see the conflicts",
        ),
    };
    ErrorResponse { code, maybe_executed: false, text: text.to_owned(), primary: String::new() }
}

fn put_error(out: &mut BytesMut, error: &ErrorResponse) {
    out.put_u16(error.code.number());
    let retriable = if error.code.retriable() { FLAG_RETRIABLE } else { 0 };
    let maybe_executed = if error.maybe_executed { FLAG_MAYBE_EXECUTED } else { 0 };
    out.put_u8(retriable | maybe_executed);
    put_string(out, &error.text[..error.text.floor_char_boundary(ERROR_TEXT_BYTES_MAX)]);
    put_string(out, &error.primary);
}

fn read_error(r: &mut Reader<'_>) -> Result<ErrorResponse, DecodeError> {
    let offset = r.offset();
    let number = r.u16("code")?;
    let Some(code) = ErrorCode::from_number(number) else {
        let expected = "the number of an error";
        return Err(DecodeError::Value { field: "code", offset, found: u64::from(number), expected });
    };
    let flags = r.flags("flags", 2)?;
    Ok(ErrorResponse {
        code,
        maybe_executed: flags & FLAG_MAYBE_EXECUTED != 0,
        text: r.string("text")?,
        primary: r.string("primary")?,
    })
}

fn put_message(out: &mut BytesMut, message: &MessageView) {
    put_id(out, message.id.0);
    put_string(out, &message.from);
    put_string(out, &message.to);
    out.put_u64(message.unix_ms);
    out.put_u8(u8::from(message.delivered) | u8::from(message.late) << 1);
    out.put_u64(message.cursor);
    put_string(out, &message.text);
}

fn read_message(r: &mut Reader<'_>) -> Result<MessageView, DecodeError> {
    let (id, from, to) = (MessageId(r.id("id")?), r.string("from")?, r.string("to")?);
    let (unix_ms, flags) = (r.u64("time")?, r.flags("delivered, late", 2)?);
    let (cursor, text) = (r.u64("cursor")?, r.string("text")?);
    let (delivered, late) = (flags & 1 != 0, flags & 2 != 0);
    Ok(MessageView { id, from, to, unix_ms, delivered, late, cursor, text })
}

fn put_conflict(out: &mut BytesMut, conflict: &ConflictView) {
    out.put_u64(conflict.cursor);
    put_id(out, conflict.request);
    out.put_u64(conflict.unix_ms);
    for text in [&conflict.reason, &conflict.command, &conflict.account, &conflict.other, &conflict.text] {
        put_string(out, text);
    }
}

fn read_conflict(r: &mut Reader<'_>) -> Result<ConflictView, DecodeError> {
    Ok(ConflictView {
        cursor: r.u64("cursor")?,
        request: r.id("request")?,
        unix_ms: r.u64("time")?,
        reason: r.string("reason")?,
        command: r.string("command")?,
        account: r.string("account")?,
        other: r.string("other")?,
        text: r.string("text")?,
    })
}

fn put_status(out: &mut BytesMut, status: &Status) {
    put_string(out, &status.server);
    put_string(out, &status.role);
    put_view(out, status.view);
    put_string(out, &status.primary);
    put_strings(out, &status.members);
    put_strings(out, &status.configured);
    for number in [status.last, status.synced, status.commit, status.applied, status.lag, status.since_ms] {
        out.put_u64(number);
    }
    put_string(out, &status.note);
}

fn read_status(r: &mut Reader<'_>) -> Result<Status, DecodeError> {
    Ok(Status {
        server: r.string("server")?,
        role: r.string("role")?,
        view: r.view("view")?,
        primary: r.string("primary")?,
        members: r.strings("members")?,
        configured: r.strings("configured")?,
        last: r.u64("last")?,
        synced: r.u64("synced")?,
        commit: r.u64("commit")?,
        applied: r.u64("applied")?,
        lag: r.u64("lag")?,
        since_ms: r.u64("since")?,
        note: r.string("note")?,
    })
}

/// Whether a frame on a fresh connection opens the handshake of two servers; otherwise it is a client's.
#[must_use]
pub const fn is_peer(frame: &Frame) -> bool {
    frame.opcode == opcode::PEER_HELLO
}
