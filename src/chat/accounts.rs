//! Accounts, their names, and the short handles that messages name them by.

use std::collections::{BTreeMap, VecDeque};

use super::Account;
use super::command::DELETED_NAME;
use super::table::SnapshotTable;
use crate::types::{AccountId, LogIndex, RequestId};

/// An empty mailbox keeps space for so many messages.
const WAITING_KEPT_MAX: usize = 64;

/// A short name for an account within this process. Which number an account has differs between servers and so never
/// leaves the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Handle(u32);

impl Handle {
    /// Stands for all deleted accounts together.
    pub(super) const DELETED: Self = Self(0);

    /// Where the slot is among all.
    pub(super) fn at(self) -> usize {
        self.0 as usize - 1
    }
}

/// An account's row.
#[derive(Clone, Debug)]
pub(super) struct AccountRow {
    pub(super) account: Account,
    pub(super) handle: Handle,
    /// The last command of those of its sessions that have ended.
    pub(super) active: LogIndex,
}

/// What a handle stands for.
#[derive(Clone, Debug)]
struct Slot {
    id: AccountId,
    /// Whether the account exists. A deleted one keeps its handle while messages name it.
    live: bool,
    /// How often messages name it: as sender and as recipient.
    mentions: u64,
    /// The orders of the messages that wait for it, ascending.
    waiting: VecDeque<u64>,
}

/// How often messages name an account, and which wait for it, found afresh for a check.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) mentions: BTreeMap<Handle, u64>,
    pub(super) waiting: BTreeMap<Handle, VecDeque<u64>>,
}

/// Accounts by name in lower case.
pub(super) type Names = BTreeMap<Box<str>, AccountId>;

/// All accounts.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    pub(super) accounts: SnapshotTable<AccountId, AccountRow>,
    pub(super) names: Names,
    /// Deleted accounts that messages still name.
    deleted: BTreeMap<AccountId, Handle>,
    /// By handle; the one of [`Handle::DELETED`] is left out.
    slots: Vec<Slot>,
    /// Handles that stand for nothing any more.
    released: Vec<Handle>,
    bytes: u64,
}

impl Directory {
    /// The account with this name, in whatever case.
    pub(super) fn named(&self, name: &str) -> Option<AccountId> {
        // Most people write names as they are kept: then nothing has to be copied.
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.names.get(name.to_ascii_lowercase().as_str()).copied();
        }
        self.names.get(name).copied()
    }

    /// The handle of an existing account.
    pub(super) fn handle(&self, id: AccountId) -> Option<Handle> {
        self.accounts.row(id).map(|row| row.handle)
    }

    /// The handle of an account that exists, or that messages name.
    pub(super) fn known_handle(&self, id: AccountId) -> Option<Handle> {
        self.handle(id).or_else(|| self.deleted.get(&id).copied())
    }

    /// Whether an account has this id, or a message names one that had.
    pub(super) fn knows(&self, id: AccountId) -> bool {
        self.accounts.contains(id) || self.deleted.contains_key(&id)
    }

    fn slot(&self, handle: Handle) -> &Slot {
        &self.slots[handle.at()]
    }

    fn slot_mut(&mut self, handle: Handle) -> &mut Slot {
        &mut self.slots[handle.at()]
    }

    /// The id that a handle stands for; also that of a deleted account.
    pub(super) fn id(&self, handle: Handle) -> AccountId {
        self.slot(handle).id
    }

    /// Whether a handle's account exists.
    pub(super) fn is_live(&self, handle: Handle) -> bool {
        self.slot(handle).live
    }

    /// An account's name, or what is shown in its place.
    pub(super) fn name(&self, handle: Handle) -> &str {
        let slot = self.slot(handle);
        if !slot.live {
            return DELETED_NAME;
        }
        &self.accounts.row(slot.id).expect("a live handle has an account").account.name
    }

    /// How many messages wait for an account.
    pub(super) fn waiting(&self, handle: Handle) -> u64 {
        self.slot(handle).waiting.len() as u64
    }

    /// The orders of what waits for an account, above `after`, oldest first.
    pub(super) fn waiting_after(&self, handle: Handle, after: u64) -> impl Iterator<Item = u64> {
        let waiting = &self.slot(handle).waiting;
        waiting.range(waiting.partition_point(|order| *order <= after)..).copied()
    }

    /// Roughly how many bytes the accounts take in a checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds an account whose id and name are new. `reuse`: released handles may be given out again, since no
    /// checkpoint under way has yet to write rows that name what they stood for.
    pub(super) fn add(&mut self, id: AccountId, account: Account, reuse: bool) {
        assert!(!self.knows(id), "account {id} is added twice");
        let earlier = self.names.insert(folded(&account.name), id);
        assert_eq!(earlier, None, "the name {:?} is given twice", account.name);
        self.add_row(id, account, LogIndex(0), reuse);
    }

    /// Adds an account, of a new id, that can't be looked up by its name before it stands in `names`.
    pub(super) fn add_row(
        &mut self,
        id: AccountId,
        account: Account,
        active: LogIndex,
        reuse: bool,
    ) -> Handle {
        let handle = self.allocate(Slot { id, live: true, mentions: 0, waiting: VecDeque::new() }, reuse);
        self.bytes += row_bytes(&account);
        self.accounts.insert(id, AccountRow { account, handle, active });
        handle
    }

    /// After [`Directory::add_row`]: all accounts by their names, for `names`. They are sorted first, which
    /// takes a fraction of the time of adding one after the other.
    ///
    /// # Errors
    /// Two accounts have the same name: the later one.
    pub(super) fn names_of_rows(&self) -> Result<Names, AccountId> {
        let mut names: Vec<_> =
            self.accounts.iter().map(|(id, row)| (folded(&row.account.name), id)).collect();
        names.sort_unstable();
        let same = names.windows(2).filter(|pair| pair[0].0 == pair[1].0).map(|pair| pair[1].1);
        same.min().map_or_else(|| Ok(names.into_iter().collect()), Err)
    }

    /// The handle of an account that may be deleted: a message that is about to be added names it. For `reuse` see
    /// [`Directory::add`].
    pub(super) fn handle_of_any(&mut self, id: AccountId, reuse: bool) -> Handle {
        if let Some(handle) = self.known_handle(id) {
            return handle;
        }
        let handle = self.allocate(Slot { id, live: false, mentions: 0, waiting: VecDeque::new() }, reuse);
        self.deleted.insert(id, handle);
        handle
    }

    fn allocate(&mut self, slot: Slot, reuse: bool) -> Handle {
        if reuse && let Some(handle) = self.released.pop() {
            *self.slot_mut(handle) = slot;
            return handle;
        }
        self.slots.push(slot);
        Handle(u32::try_from(self.slots.len()).expect("fewer than 2^32 accounts fit into memory"))
    }

    /// Takes an account out; its messages must have been dealt with.
    pub(super) fn remove(&mut self, id: AccountId) {
        let row = self.accounts.remove(id).expect("only an account that exists is removed");
        self.bytes -= row_bytes(&row.account);
        self.names.remove(row.account.name.to_ascii_lowercase().as_str());
        let slot = self.slot_mut(row.handle);
        assert!(slot.waiting.is_empty(), "messages wait for the deleted account {id}");
        slot.live = false;
        if slot.mentions == 0 {
            self.released.push(row.handle);
        } else {
            self.deleted.insert(id, row.handle);
        }
    }

    /// Replaces an account's password.
    pub(super) fn replace_password(&mut self, id: AccountId, password: &str, request: RequestId) {
        let row = self.accounts.row_mut(id).expect("the account was checked to exist");
        self.bytes -= row_bytes(&row.account);
        row.account.password = password.to_owned();
        row.account.password_set = request;
        self.bytes += row_bytes(&row.account);
    }

    /// A name that is free: this one with the lowest number behind it.
    pub(super) fn free_name(&self, name: &str) -> String {
        let mut numbered = (2u64..).map(|number| format!("{name}~{number}"));
        let free = numbered.find(|name| self.named(name).is_none());
        free.expect("there are more numbers than accounts")
    }

    /// Gives an account another name, which must be free.
    pub(super) fn rename(&mut self, id: AccountId, name: &str) {
        let row = self.accounts.row_mut(id).expect("only an account that exists is renamed");
        self.bytes -= row_bytes(&row.account);
        self.names.remove(row.account.name.to_ascii_lowercase().as_str());
        row.account.name = name.to_owned();
        self.bytes += row_bytes(&row.account);
        let earlier = self.names.insert(folded(name), id);
        assert_eq!(earlier, None, "the name {name:?} is given twice");
    }

    /// A session of the account has ended whose last command was this one.
    pub(super) fn note_active(&mut self, id: AccountId, index: LogIndex) {
        if self.accounts.row(id).is_some_and(|row| row.active < index) {
            self.accounts.row_mut(id).expect("it was there a moment ago").active = index;
        }
    }

    /// Counts a message that names the account.
    pub(super) fn mention(&mut self, handle: Handle) {
        self.slot_mut(handle).mentions += 1;
    }

    /// A message that named the account is gone. The last one takes a deleted account's handle with it.
    pub(super) fn forget_mention(&mut self, handle: Handle) {
        let slot = self.slot_mut(handle);
        slot.mentions -= 1;
        if slot.mentions == 0 && !slot.live {
            let id = slot.id;
            self.deleted.remove(&id);
            self.released.push(handle);
        }
    }

    /// A message waits for the account, later in the order than all others that do.
    pub(super) fn wait(&mut self, handle: Handle, order: u64) {
        let waiting = &mut self.slot_mut(handle).waiting;
        assert!(waiting.back().is_none_or(|last| *last < order), "what waits is added in order");
        waiting.push_back(order);
    }

    /// Whether the account of each handle exists, by [`Handle::at`]: apart from the slots, which fill much more memory.
    pub(super) fn live(&self) -> Vec<bool> {
        self.slots.iter().map(|slot| slot.live).collect()
    }

    /// How often messages name each account, for [`Directory::set_messages`], given what all of them name.
    pub(super) fn mentions(&self, named: impl Iterator<Item = Handle>) -> Vec<u64> {
        // Apart from the slots, which are visited in no order.
        let mut mentions = vec![0; self.slots.len()];
        named.for_each(|handle| mentions[handle.at()] += 1);
        mentions
    }

    /// What waits for each account, for [`Directory::set_messages`]: `all` gives recipients and orders, ascending by order,
    /// each time the same.
    pub(super) fn all_waiting<I: Iterator<Item = (Handle, u64)>>(
        &self,
        all: impl Fn() -> I,
    ) -> Vec<VecDeque<u64>> {
        // A sort that counts first: where in `orders` the next one of each account goes.
        let mut places = vec![0; self.slots.len()];
        all().for_each(|(handle, _)| places[handle.at()] += 1);
        let mut total = 0;
        for place in &mut places {
            total += std::mem::replace(place, total);
        }
        let mut orders = vec![0; total];
        for (handle, order) in all() {
            let place = &mut places[handle.at()];
            orders[*place] = order;
            *place += 1;
        }
        let starts = std::iter::once(0).chain(places.iter().copied());
        starts.zip(&places).map(|(start, end)| orders[start..*end].to_vec().into()).collect()
    }

    /// Says anew, of each account, how often messages name it and which wait for it.
    pub(super) fn set_messages(&mut self, mentions: Vec<u64>, waiting: Vec<VecDeque<u64>>) {
        for (slot, (mentions, waiting)) in self.slots.iter_mut().zip(mentions.into_iter().zip(waiting)) {
            (slot.mentions, slot.waiting) = (mentions, waiting);
        }
    }

    /// A message no longer waits for the account. Nearly always it is among the oldest.
    pub(super) fn end_wait(&mut self, handle: Handle, order: u64) {
        let waiting = &mut self.slot_mut(handle).waiting;
        let at = waiting.binary_search(&order).expect("only what waits ends to wait");
        waiting.remove(at);
        if waiting.is_empty() && waiting.capacity() > WAITING_KEPT_MAX {
            *waiting = VecDeque::new();
        }
    }

    /// Packs accounts that were added in order.
    pub(super) fn pack(&mut self) {
        self.accounts.pack();
    }

    /// Compares what is kept in several places.
    pub(super) fn check(&self, Counts { mentions, waiting }: &Counts) -> Result<(), String> {
        let mut bytes = 0;
        for (id, row) in self.accounts.iter() {
            let slot = self.slot(row.handle);
            if !slot.live || slot.id != id {
                return Err(format!("account {id} has the handle of {slot:?}"));
            }
            if self.named(&row.account.name) != Some(id) {
                return Err(format!("account {id} can't be found by its name {:?}", row.account.name));
            }
            bytes += row_bytes(&row.account);
        }
        if self.names.len() != self.accounts.len() || bytes != self.bytes {
            return Err(format!(
                "{} names for {} accounts, {} bytes instead of {bytes}",
                self.names.len(),
                self.accounts.len(),
                self.bytes
            ));
        }
        for (id, handle) in &self.deleted {
            let slot = self.slot(*handle);
            if slot.live || slot.id != *id || slot.mentions == 0 {
                return Err(format!("deleted account {id} has the handle of {slot:?}"));
            }
        }
        if self.slots.len() != self.accounts.len() + self.deleted.len() + self.released.len() {
            return Err(format!("{} handles, {} released", self.slots.len(), self.released.len()));
        }
        let none = VecDeque::new();
        for (at, slot) in self.slots.iter().enumerate() {
            let handle = Handle(u32::try_from(at + 1).expect("there are fewer handles"));
            let named = mentions.get(&handle).copied().unwrap_or(0);
            let waiting = waiting.get(&handle).unwrap_or(&none);
            if slot.mentions != named || slot.waiting != *waiting {
                return Err(format!("{slot:?} is named {named} times, and {waiting:?} wait"));
            }
        }
        Ok(())
    }
}

/// A name as it is looked up: in lower case.
fn folded(name: &str) -> Box<str> {
    name.to_ascii_lowercase().into()
}

fn row_bytes(account: &Account) -> u64 {
    (account.name.len() + account.password.len() + 60) as u64
}
