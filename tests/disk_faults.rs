//! Real servers whose disks fail: the first rounds of `scripts/disk_faults`, where strace is to be had.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::path::Path;
use std::process::Command;

/// Each kind of fault once.
const ROUNDS: &str = "11";

fn runs(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[test]
fn real_servers_whose_disks_fail_lose_nothing_and_come_back() {
    // It must be there, and be allowed to trace.
    let traces =
        runs("strace", &["-f", "-qq", "-o", "/dev/null", "-e", "inject=fdatasync:error=EIO", "true"]);
    if !traces || !runs("python3", &["--version"]) {
        eprintln!("SKIPPED: real_servers_whose_disks_fail…: expected strace that may trace, and python3");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/disk_faults");
    let programs = Path::new(env!("CARGO_BIN_EXE_server")).parent().unwrap();
    let output = Command::new(script)
        .args(["--rounds", ROUNDS, "--seed", "1538"])
        .env("LASTWORD_BIN", programs)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(" 0 lost, 0 doubled"), "{said}");
}
