//! lastword: a replicated chat server that outlives its machines.

pub mod chat;
pub mod client;
pub mod config;
pub mod message;
pub mod prng;
pub mod replica;
pub mod row;
pub mod server;
pub mod storage;
pub mod time;
pub mod types;
pub mod wire;
