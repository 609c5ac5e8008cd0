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
    /// All processes killed, and started again in some order, seconds apart.
    ColdStart = "cold_start", true;
    /// A process that does not run for a while, as after SIGSTOP.
    Pause = "pause", true;
    /// A disk whose syncs take 50 to 500 ms for a while (V10).
    SlowDisk = "slow_disk", true;
    /// A disk on which nothing is done for a while (N9).
    StuckDisk = "stuck_disk", true;
    /// A sync that fails, after which the page cache shows more than the disk has (D2).
    SyncError = "sync_error", true;
    /// A write that fails, and all after it (D2).
    WriteError = "write_error", true;
    /// A write that found too little space (D3).
    ShortWrite = "short_write", true;
    /// A server that notices that its disk is nearly full (D3).
    DiskNearlyFull = "disk_nearly_full", true;
    /// A flipped bit in an entry's row (D4).
    RotEntry = "rot_entry", true;
    /// A flipped bit in the hard state, or another row that is no entry (D4).
    RotControl = "rot_control", true;
    /// A flipped bit in a checkpoint (D6).
    RotTable = "rot_table", true;
    /// A directory that was refused for its damage: somebody empties it, as the message says.
    Refused = "refused", false;
    /// A directory emptied while its server is down and not a member of the view (V6).
    Wipe = "wipe", true;
    /// A directory put back as it once was, while its server is down and not a member of the view (V6).
    RollBack = "roll_back", true;
    /// A checkpoint finished while commands went on.
    Checkpoint = "checkpoint", true;
    /// A log cut in front.
    LogCut = "log_cut", true;
    /// A path between two servers that stalls for less than the suspicion timeout.
    LinkCut = "link_cut", true;
    /// A connection between two live servers that breaks.
    LinkReset = "link_reset", true;
    /// One direction between two servers closed.
    OneWay = "one_way", true;
    /// Both directions between two servers closed.
    SingleLink = "single_link", true;
    /// One server without the others.
    Isolated = "isolated", true;
    /// No server reaches any other.
    AllApart = "all_apart", true;
    /// One of these for longer than a minority waits (V11): it may split the brain.
    LongPartition = "long_partition", true;
    /// Two servers that committed something else, each in a view of its own.
    SplitBrain = "split_brain", true;
    /// A server that went on without others that may hold acknowledged commands, after it had waited for them.
    ColdWait = "cold_wait", true;
    /// A path between two servers that takes 20 to 400 ms for a while.
    SlowLink = "slow_link", true;
    /// A client that does not reach a server, or does not hear it.
    ClientCut = "client_cut", true;
    /// A server that stays broken for ever; in liveness mode.
    ForEver = "for_ever", false;
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

/// How often each kind has fired, and in how many seeds.
#[derive(Clone, Debug)]
pub(crate) struct FaultCounts {
    fired: [u64; Fault::ALL.len()],
    seeds: [u64; Fault::ALL.len()],
}

impl Default for FaultCounts {
    fn default() -> Self {
        Self { fired: [0; Fault::ALL.len()], seeds: [0; Fault::ALL.len()] }
    }
}

impl FaultCounts {
    /// Counts one.
    pub(crate) fn count(&mut self, fault: Fault) {
        self.fired[fault as usize] += 1;
    }

    /// How often one has fired.
    pub(crate) fn fired(&self, fault: Fault) -> u64 {
        self.fired[fault as usize]
    }

    /// Adds the counts of one seed.
    pub(crate) fn add_seed(&mut self, other: &Self) {
        for (at, fired) in other.fired.iter().enumerate() {
            self.fired[at] += fired;
            self.seeds[at] += u64::from(*fired > 0);
        }
    }

    /// Required kinds that fired less than once in a thousand seeds, or never.
    pub(crate) fn missing(&self, seeds: u64) -> Vec<&'static str> {
        let rare = |fault: &&Fault| self.fired[**fault as usize] < (seeds / 1000).max(1);
        Fault::ALL.iter().filter(|fault| fault.required()).filter(rare).map(|fault| fault.word()).collect()
    }
}

impl std::fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "  {:<24}{:>12}{:>10}", "fault", "fired", "seeds")?;
        for (at, fault) in Fault::ALL.iter().enumerate() {
            write!(f, "\n  {:<24}{:>12}{:>10}", fault.word(), self.fired[at], self.seeds[at])?;
        }
        Ok(())
    }
}
