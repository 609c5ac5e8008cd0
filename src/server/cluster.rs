//! Which servers there are, and which of them this one is: the argument rules of the command line.

use std::fs;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _, UdpSocket};
use std::path::Path;

use serde::Deserialize;

use crate::types::ServerId;

/// The cluster list when neither the command line nor a file has one.
pub const DEFAULT_SERVERS: [&str; 3] = ["127.0.0.1:1538", "127.0.0.1:2538", "127.0.0.1:3538"];
/// The file with the cluster list, looked for in the working directory.
pub const CLUSTER_FILE: &str = "cluster.toml";
/// Most servers in one cluster.
pub const SERVERS_MAX: usize = 9;

/// Why the arguments do not say which cluster this is, or which of its servers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ClusterError(String);

/// Splits `host:port`; an IPv6 host stands in brackets.
///
/// # Errors
/// What was found and what was expected.
pub fn split_address(address: &str) -> Result<(&str, u16), ClusterError> {
    let wrong = |what: &str| {
        ClusterError(format!("found {address:?} as a server's address, expected HOST:PORT: {what}"))
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("it has no colon"))?;
    let port: u16 = port.parse().map_err(|_| wrong("the port is no number from 1 to 65535"))?;
    if port == 0 {
        return Err(wrong("the port is 0"));
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(inside) => inside,
        None if host.contains(':') => return Err(wrong("an IPv6 address stands in brackets")),
        None => host,
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
        return Err(wrong("the host is empty or has characters that no host has"));
    }
    Ok((host, port))
}

/// Reads a list of addresses that are separated by commas.
///
/// # Errors
/// An address can't be read, stands twice, or there are too many.
pub fn parse_servers(list: &str) -> Result<Vec<String>, ClusterError> {
    check_servers(list.split(',').map(|address| address.trim().to_owned()).collect())
}

fn check_servers(servers: Vec<String>) -> Result<Vec<String>, ClusterError> {
    if servers.is_empty() || servers.len() > SERVERS_MAX {
        let found = servers.len();
        return Err(ClusterError(format!("found {found} servers in the list, expected 1 to {SERVERS_MAX}")));
    }
    for (at, address) in servers.iter().enumerate() {
        split_address(address)?;
        if servers[..at].contains(address) {
            return Err(ClusterError(format!(
                "found {address} twice in the list of servers, expected it once"
            )));
        }
    }
    Ok(servers)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    servers: Vec<String>,
}

/// The cluster list: of the command line, else of [`CLUSTER_FILE`] in `directory`, else [`DEFAULT_SERVERS`].
///
/// # Errors
/// The list, or the file, can't be read.
pub fn find_servers(argument: Option<&str>, directory: &Path) -> Result<Vec<String>, ClusterError> {
    if let Some(list) = argument {
        return parse_servers(list);
    }
    let path = directory.join(CLUSTER_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(DEFAULT_SERVERS.map(str::to_owned).to_vec());
        }
        Err(error) => return Err(ClusterError(format!("{}: reading failed: {error}", path.display()))),
    };
    let file: ClusterFile = toml::from_str(&text).map_err(|error| {
        let reason = error.message().to_owned();
        let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        ClusterError(format!(
            "{}, line {line}: {reason}; expected servers = [\"host:port\", …]",
            path.display()
        ))
    })?;
    check_servers(file.servers).map_err(|error| ClusterError(format!("{}: {error}", path.display())))
}

/// Which server of the list this process is: the `--advertise` entry, else the only one with the port whose host is
/// this machine.
///
/// # Errors
/// No entry fits, or several do.
pub fn find_self(servers: &[String], port: u16, advertise: Option<&str>) -> Result<ServerId, ClusterError> {
    find_self_where(servers, port, advertise, is_local)
}

fn find_self_where(
    servers: &[String],
    port: u16,
    advertise: Option<&str>,
    is_local: impl Fn(&str) -> bool,
) -> Result<ServerId, ClusterError> {
    let list = servers.join(",");
    if let Some(address) = advertise {
        let at = servers.iter().position(|server| server == address);
        return at.map(server_id).ok_or_else(|| {
            ClusterError(format!("found --advertise {address}, expected one of the cluster list {list}"))
        });
    }
    let fitting: Vec<usize> = (0..servers.len())
        .filter(|&at| {
            split_address(&servers[at]).is_ok_and(|(host, its_port)| its_port == port && is_local(host))
        })
        .collect();
    match fitting[..] {
        [at] => Ok(server_id(at)),
        [] => Err(ClusterError(format!(
            "found no address of this machine with port {port} in the cluster list {list}; expected one: give --cluster, \
             or say with --advertise HOST:PORT which server this is"
        ))),
        _ => Err(ClusterError(format!(
            "found {} addresses of this machine with port {port} in the cluster list {list}; expected one: say with \
             --advertise HOST:PORT which server this is",
            fitting.len()
        ))),
    }
}

fn server_id(at: usize) -> ServerId {
    ServerId(u8::try_from(at + 1).expect("the list is short"))
}

/// Whether a host name means this machine: only then a socket can be bound to it.
fn is_local(host: &str) -> bool {
    let literal = host.parse::<IpAddr>().map(|address| vec![address]);
    let addresses = literal.or_else(|_| {
        (host, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect::<Vec<_>>())
    });
    addresses.is_ok_and(|all| {
        all.iter().any(|&address| !address.is_unspecified() && UdpSocket::bind((address, 0)).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(list: &str) -> Vec<String> {
        parse_servers(list).unwrap()
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert_eq!(split_address("a.example:1538"), Ok(("a.example", 1538)));
        assert_eq!(split_address("[::1]:1538"), Ok(("::1", 1538)));
        for wrong in ["", "a", ":1", "a:0", "a:70000", "::1:1538", "a b:1", "a:1/x"] {
            let error = split_address(wrong).unwrap_err().to_string();
            assert!(error.contains("expected HOST:PORT"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_flag_wins_over_the_file_and_the_file_over_the_default() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(find_servers(None, directory.path()).unwrap(), DEFAULT_SERVERS);
        fs::write(directory.path().join(CLUSTER_FILE), "servers = [\"a:1\", \"b:2\"]\n").unwrap();
        assert_eq!(find_servers(None, directory.path()).unwrap(), ["a:1", "b:2"]);
        assert_eq!(find_servers(Some("c:3, d:4"), directory.path()).unwrap(), ["c:3", "d:4"]);
    }

    #[test]
    fn a_wrong_file_is_named_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(CLUSTER_FILE), "# list\nserver = 1\n").unwrap();
        let error = find_servers(None, directory.path()).unwrap_err().to_string();
        assert!(error.contains("cluster.toml, line 2"), "{error}");
    }

    #[test]
    fn a_list_names_each_server_once() {
        assert!(parse_servers("a:1,a:1").unwrap_err().to_string().contains("twice"));
        assert!(parse_servers(&["a:1"; SERVERS_MAX + 1].join(",")).is_err());
    }

    #[test]
    fn self_is_the_only_local_entry_with_the_port() {
        let list = servers("a:1,b:1,here:1,here:2");
        let me = |port, advertise| find_self_where(&list, port, advertise, |host| host == "here");
        assert_eq!(me(1, None), Ok(ServerId(3)));
        assert_eq!(me(2, None), Ok(ServerId(4)));
        assert_eq!(me(9, Some("b:1")), Ok(ServerId(2)));
        assert!(me(3, None).unwrap_err().to_string().contains("found no address"));
        assert!(me(1, Some("x:1")).unwrap_err().to_string().contains("--advertise x:1"));
    }

    #[test]
    fn two_names_of_this_machine_with_one_port_need_advertise() {
        let list = servers("here:1,127.0.0.1:1");
        let error = find_self_where(&list, 1, None, |_| true).unwrap_err().to_string();
        assert!(error.contains("found 2 addresses"), "{error}");
    }

    #[test]
    fn the_loopback_address_is_local_and_a_documentation_address_is_not() {
        assert!(is_local("127.0.0.1"));
        assert!(!is_local("192.0.2.1"));
        assert!(!is_local("0.0.0.0"));
    }
}
