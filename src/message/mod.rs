//! Plain data that the layers above exchange: log entries and views, what a disk must remember, what servers say to
//! each other, what clients ask and are answered.

mod client;
mod disk;
mod log;
mod peer;

pub use client::*;
pub use disk::*;
pub use log::*;
pub use peer::*;
