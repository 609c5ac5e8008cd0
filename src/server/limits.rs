//! The process's limit of open files: each connection takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::CONNECTIONS_MAX;

/// Files that are open besides client connections: logs, tables, peer links, the listener, and some to spare.
pub const FILES_RESERVED: usize = 128;

/// How many connections the process can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimit {
    /// So many.
    pub connections_max: usize,
    /// What a person should know, if it is fewer than [`CONNECTIONS_MAX`].
    pub warning: Option<String>,
}

/// Raises the soft limit of open files to the hard one, and says how many connections fit.
#[must_use]
pub fn raise_file_limit() -> ConnectionLimit {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // No limit at all is as good as the highest number.
    connection_limit(files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX)))
}

fn connection_limit(files: usize) -> ConnectionLimit {
    let connections_max = files.saturating_sub(FILES_RESERVED).clamp(16, CONNECTIONS_MAX);
    let warning = (connections_max < CONNECTIONS_MAX).then(|| {
        let wanted = CONNECTIONS_MAX + FILES_RESERVED;
        format!(
            "found a limit of {files} open files, expected {wanted}: this server takes {connections_max} connections \
             instead of {CONNECTIONS_MAX} (raise it with `ulimit -n {wanted}`)"
        )
    });
    ConnectionLimit { connections_max, warning }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_warned_of_and_a_high_one_is_not() {
        let low = connection_limit(1024);
        assert_eq!(low.connections_max, 1024 - FILES_RESERVED);
        assert!(low.warning.unwrap().contains("found a limit of 1024 open files"));
        assert_eq!(
            connection_limit(usize::MAX),
            ConnectionLimit { connections_max: CONNECTIONS_MAX, warning: None }
        );
    }
}
