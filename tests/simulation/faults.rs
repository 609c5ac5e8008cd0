//! The kinds of fault, and how often each has fired. A kind that never fires proves nothing.

macro_rules! faults {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal, $required:literal;)*) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fault { $($(#[doc = $doc])* $name,)* }

        impl Fault {
            /// Every kind.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in reports.
            pub(crate) fn word(self) -> &'static str { match self { $(Self::$name => $word,)* } }

            /// Whether the swarm must have seen it.
            pub(crate) fn required(self) -> bool { match self { $(Self::$name => $required,)* } }
        }
    };
}

faults! {
    /// One process killed; its host stays, so connects are refused.
    Kill = "kill", true;
    /// Two processes killed at the same moment.
    KillTwo = "kill_two", true;
    /// All processes killed at the same moment.
    KillAll = "kill_all", true;
    /// All processes but one that has just woken from a pause, killed at the same moment.
    KillOthersOfWoken = "kill_others_of_woken", true;
    /// One host without power: unsynced bytes are cut at random, nothing answers.
    PowerLoss = "power_loss", true;
    /// All hosts without power at the same moment.
    PowerLossAll = "power_loss_all", true;
    /// A process killed while a sync is under way: part of the batch may be in the file.
    KillDuringSync = "kill_during_sync", true;
    /// A process started again.
    Restart = "restart", true;
    /// A process asked to stop in order.
    Stop = "stop", true;
    /// A process that does not run for a while, as after SIGSTOP.
    Pause = "pause", true;
    /// A disk whose syncs take very long for a while.
    SlowDisk = "slow_disk", true;
    /// A directory emptied while its server is down and not a member of the view.
    Wipe = "wipe", true;
    /// A path between two servers that stalls for less than the suspicion timeout.
    LinkCut = "link_cut", true;
    /// A connection between two live servers that breaks.
    LinkReset = "link_reset", true;
    /// A real partition; off in the main swarm, since fail-stop may split the brain.
    Partition = "partition", false;
    /// A message between servers that never arrives.
    MessageLost = "message_lost", true;
    /// A message between servers that arrives twice.
    MessageDuplicated = "message_duplicated", true;
    /// A message between servers that overtakes or is overtaken.
    MessageReordered = "message_reordered", true;
    /// A message between servers that went through the wire format.
    MessageEncoded = "message_encoded", true;
    /// A client's connection that breaks right before a reply arrives.
    ReplyDropped = "reply_dropped", true;
    /// A request that was sent again with its number.
    RequestRetried = "request_retried", true;
    /// A server whose clock runs at another rate.
    ClockSkew = "clock_skew", true;
    /// A wall clock that jumps.
    WallClockJump = "wall_clock_jump", true;
}

/// How often each kind has fired.
#[derive(Clone, Debug)]
pub(crate) struct FaultCounts([u64; Fault::ALL.len()]);

impl Default for FaultCounts {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl FaultCounts {
    /// Counts one.
    pub(crate) fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// How often it fired.
    pub(crate) fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// Adds the counts of another run.
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Required kinds that never fired.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        Fault::ALL.iter().filter(|f| f.required() && self.of(**f) == 0).map(|f| f.word()).collect()
    }
}

impl std::fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, fault) in Fault::ALL.iter().enumerate() {
            if at > 0 {
                f.write_str(if at % 6 == 0 { "\n  " } else { "  " })?;
            }
            write!(f, "{} {}", fault.word(), self.of(*fault))?;
        }
        Ok(())
    }
}
