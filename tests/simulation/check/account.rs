//! The model of an account's name: nobody has it, or one account with one password.

use lastword::types::AccountId;

use super::linear::Model;

/// A password, by number: none is ever used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Password(pub u32);

impl std::fmt::Display for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "password {}", self.0)
    }
}

/// Who has a name: the account's id, if anyone was told it, and its password.
pub(crate) type Holder = Option<(Option<AccountId>, Password)>;

/// What happens to a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AccountCall {
    /// An account is created.
    Register {
        /// Its id, if the creator was told it.
        id: Option<AccountId>,
        /// Its password.
        password: Password,
    },
    /// The password is right: somebody logs in to this account.
    Login {
        /// The account.
        id: AccountId,
        /// The password.
        password: Password,
    },
    /// The password is not the account's, or nobody has the name.
    Wrong(Password),
    /// The password is replaced.
    Change {
        /// By whoever knows this one.
        old: Password,
        /// The next one.
        new: Password,
    },
    /// The account is deleted by whoever knows its password.
    Delete(Password),
    /// Somebody has the name: this account, if the answer named it.
    Present(Option<AccountId>),
    /// Nobody has the name.
    Absent,
}

impl Model for AccountCall {
    type State = Holder;

    fn step(&self, holder: &Holder) -> Option<Holder> {
        let is = |password| matches!(holder, Some((_, known)) if known == password);
        let fits_id =
            |id: &AccountId| matches!(holder, Some((known, _)) if known.is_none_or(|known| known == *id));
        let fits = match self {
            Self::Register { id, password } => {
                return holder.is_none().then_some(Some((*id, *password)));
            }
            Self::Change { old, new } => {
                let (id, _) = holder.as_ref().filter(|_| is(old))?;
                return Some(Some((*id, *new)));
            }
            Self::Delete(password) => return is(password).then_some(None),
            Self::Login { id, password } => is(password) && fits_id(id),
            Self::Wrong(password) => !is(password),
            Self::Present(Some(id)) => fits_id(id),
            Self::Present(None) => holder.is_some(),
            Self::Absent => holder.is_none(),
        };
        fits.then_some(*holder)
    }

    fn is_read(&self) -> bool {
        !matches!(self, Self::Register { .. } | Self::Change { .. } | Self::Delete(_))
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::{Call, PENDING, Verdict, check};
    use super::*;
    use lastword::types::{ClientId, RequestId, RequestNumber};

    fn id(client: u64) -> AccountId {
        AccountId(RequestId { client: ClientId(client), number: RequestNumber(1) })
    }

    fn holds(calls: &[(u64, u64, AccountCall)]) -> bool {
        let calls: Vec<_> = calls
            .iter()
            .map(|(invoked, returned, model)| Call {
                model: model.clone(),
                invoked: *invoked,
                returned: *returned,
            })
            .collect();
        check(&calls, None, 1_000) == Verdict::Linearizable
    }

    #[test]
    fn name_belongs_to_one_account_at_a_time() {
        let register = |client| AccountCall::Register { id: Some(id(client)), password: Password(1) };
        assert!(!holds(&[(1, 2, register(1)), (3, 4, register(2))]));
        let delete = AccountCall::Delete(Password(1));
        assert!(holds(&[(1, 2, register(1)), (3, 6, register(2)), (4, PENDING, delete)]));
        assert!(!holds(&[(1, 2, register(1)), (3, 4, AccountCall::Absent)]));
    }

    #[test]
    fn password_that_was_replaced_opens_nothing() {
        let (old, new) = (Password(1), Password(2));
        let begin = (1, 2, AccountCall::Register { id: Some(id(1)), password: old });
        let change = |returned| (3, returned, AccountCall::Change { old, new });
        let login = |password| (5, 6, AccountCall::Login { id: id(1), password });
        assert!(!holds(&[begin.clone(), change(4), login(old)]));
        assert!(holds(&[begin.clone(), change(PENDING), login(old)]));
        assert!(holds(&[begin.clone(), change(PENDING), login(new)]));
        assert!(!holds(&[begin.clone(), change(4), (5, 6, AccountCall::Wrong(new))]));
        assert!(!holds(&[begin, (3, 4, AccountCall::Login { id: id(2), password: old })]));
    }
}
