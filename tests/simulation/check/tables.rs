//! Equal index, equal bytes (D6): all tables of a checkpoint, as they would be written, and the digest.

use lastword::chat::State;

/// The tables of the first server that was looked at.
#[derive(Debug, Default)]
pub(crate) struct EqualTables(Option<(usize, Vec<u8>)>);

impl EqualTables {
    /// Compares a server's state at the end, with everything applied.
    pub(crate) fn check(&mut self, at: usize, state: &mut State) {
        self.check_bytes(at, bytes_of(state));
    }

    fn check_bytes(&mut self, at: usize, bytes: Vec<u8>) {
        let Some((first, known)) = &self.0 else {
            self.0 = Some((at, bytes));
            return;
        };
        if *known == bytes {
            return;
        }
        let same = known.iter().zip(&bytes).take_while(|(one, other)| one == other).count();
        let row = |bytes: &[u8]| {
            let start = bytes[..same].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let row = bytes[start..].split(|byte| *byte == b'\n').next().unwrap_or_default();
            String::from_utf8_lossy(row).into_owned()
        };
        panic!(
            "the tables of servers {} and {} differ from byte {same} on: {:?}, and {:?}",
            first + 1,
            at + 1,
            row(known),
            row(&bytes)
        );
    }
}

fn bytes_of(state: &mut State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.begin_checkpoint();
    while let Some(slice) = state.next_slice(64) {
        bytes.extend_from_slice(format!("{:?}\n", slice.table).as_bytes());
        bytes.extend_from_slice(&slice.rows);
    }
    // Last, so that a row which differs is named.
    bytes.extend_from_slice(&state.digest());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::panics;
    use lastword::chat::command::{ClientCommand, Command, Operation};
    use lastword::types::{AccountId, ClientId, LogIndex, RequestId, RequestNumber};

    fn state_with(name: &str) -> State {
        let request = RequestId { client: ClientId(1), number: RequestNumber(1) };
        let command = Command::Register { name: name.into(), password: "secret".into(), token: [0; 32] };
        let command =
            ClientCommand { request, acknowledged: RequestNumber(0), account: AccountId(request), command };
        let mut state = State::default();
        // The chain, and so the digest, is the same for both names.
        state.apply(LogIndex(1), 0, 7, &Operation::Command(command));
        state
    }

    #[test]
    fn table_that_differs_in_one_byte_is_refused() {
        let (mut alice, mut again, mut alicf) =
            (state_with("alice"), state_with("alice"), state_with("alicf"));
        assert_eq!(alice.digest(), alicf.digest());
        let mut tables = EqualTables::default();
        tables.check(0, &mut alice);
        tables.check(1, &mut again);
        assert!(panics(|| tables.check(2, &mut alicf)));
    }

    #[test]
    fn digest_that_differs_is_refused_though_the_tables_are_equal() {
        let mut tables = EqualTables::default();
        tables.check_bytes(0, vec![1, 2, 3]);
        assert!(panics(|| tables.check_bytes(1, vec![1, 2])));
    }
}
