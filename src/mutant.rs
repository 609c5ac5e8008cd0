//! Deliberate removals of rules, to show that the simulator notices: mutants.
//!
//! `removed!("V4-longest")` stands where the rule is carried out. It is the constant `false` in every build but one:
//! under `--cfg lastword_mutants`, which only `scripts/mutants` sets, it says whether the environment variable
//! `LASTWORD_MUTANT` names it, so that one build serves all mutants. `tests/mutants.csv` lists them, and
//! `tests/mutants.rs` holds list and code together.

/// Whether the rule is taken away. The compiler leaves nothing of it in an ordinary build.
#[cfg(not(lastword_mutants))]
macro_rules! removed {
    ($mutant:literal) => {
        false
    };
}

/// Whether `LASTWORD_MUTANT` takes the rule away.
#[cfg(lastword_mutants)]
macro_rules! removed {
    ($mutant:literal) => {
        $crate::mutant::is_removed($mutant)
    };
}

/// Whether `LASTWORD_MUTANT` names this mutant, alone or with others joined by `+`; it is read once.
#[cfg(lastword_mutants)]
pub(crate) fn is_removed(mutant: &str) -> bool {
    static REMOVED: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("LASTWORD_MUTANT").ok());
    REMOVED.as_deref().is_some_and(|names| names.split('+').any(|name| name == mutant))
}
