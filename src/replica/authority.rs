//! The view authority: who may install a view. The one replaceable decision of the protocol.
//!
//! Three servers without outside help cannot both survive two crashes and stay consistent under a partition. This
//! authority, *fail-stop*, counts silence as a crash, after care (V11). An external arbiter would replace
//! [`may_form`] and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use crate::message::{Report, Standing, View};
use crate::types::{Incarnation, ServerId, ViewNumber};

/// All that the decision rests on.
#[derive(Debug)]
pub(super) struct Ballot<'a> {
    /// Everyone in the cluster list.
    pub(super) configured: &'a [ServerId],
    /// Those that are known dead (V11).
    pub(super) dead: &'a BTreeSet<ServerId>,
    /// Those of them whose address refuses connections: dead without a doubt.
    pub(super) refused: &'a BTreeSet<ServerId>,
    /// What the others and the candidate itself report.
    pub(super) reports: &'a BTreeMap<ServerId, Report>,
    /// The highest incarnation known of each server.
    pub(super) incarnations: &'a BTreeMap<ServerId, Incarnation>,
    /// It was waited for long enough, after a cold start or by a survivor: go on with everyone who answers, provisionally.
    pub(super) waited: bool,
}

/// A view may be formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Formation {
    /// The highest installed view, V* (V3).
    pub(super) installed: View,
    /// Those whose log may start the view (V3).
    pub(super) sources: Vec<ServerId>,
    /// The source with the longest log: that log starts the view (V4).
    pub(super) longest: ServerId,
    /// Those who may hold acknowledged entries and have not answered: for their sake the view is *provisional*. What
    /// they have is proposed again when they come back (R3).
    pub(super) without: Vec<ServerId>,
}

/// No view may be formed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Awaited {
    /// Whose answer is missing.
    pub(super) servers: Vec<ServerId>,
    /// Why it is needed.
    pub(super) why: &'static str,
}

/// Decides whether the answers suffice to form a view (V3, V4, V5, V6, D4).
///
/// # Errors
/// Whose answers are awaited, and why.
pub(super) fn may_form(ballot: &Ballot<'_>) -> Result<Formation, Awaited> {
    let silent: Vec<_> = ballot
        .configured
        .iter()
        .copied()
        .filter(|server| !ballot.reports.contains_key(server) && !ballot.dead.contains(server))
        .collect();
    if !silent.is_empty() && !removed!("V5-everyone") {
        return Err(Awaited { servers: silent, why: "neither answers nor is known to be dead" });
    }
    // V3. A damaged disk is never a source, but the view it remembers has existed.
    let installed = ballot.reports.values().map(|report| &report.installed).max_by_key(|view| view.number);
    let Some(installed) = installed.filter(|view| view.exists()).cloned() else {
        return Err(Awaited { servers: others(ballot), why: "knows of a view" });
    };
    let missing = missing_witnesses(ballot, &installed);
    let unread = incomplete(ballot, &installed);
    let all_heard = missing.is_empty() && unread.is_empty() || ballot.waited;
    let sources = sources(ballot, &installed, all_heard);
    let Some(longest) = longest(ballot, &sources) else {
        let awaited = [missing, unread, others(ballot)].into_iter().find(|servers| !servers.is_empty());
        return Err(Awaited { servers: awaited.unwrap_or_default(), why: "holds the last view whole" });
    };
    // V3: a learner installs no view, but rows of a later one show that it was formed without these sources.
    let later = ballot.reports.values().any(|report| report.last.view > installed.number);
    let continuous = |source: &ServerId| {
        ballot.reports[source].continuous && !was_passed_over(ballot, &installed, *source)
    };
    let continuous =
        !later && (sources.iter().any(continuous) || is_majority_in_touch(ballot, &installed, &sources));
    let settled =
        removed!("V5-last") || continuous || missing.is_empty() || is_closed(ballot, &installed, &sources);
    if !settled && !ballot.waited {
        return Err(Awaited { servers: missing, why: "may have acknowledged later messages" });
    }
    let mut without = if settled { Vec::new() } else { missing };
    if ballot.reports[&longest].standing != Standing::Whole {
        without.extend(unread);
        without.sort_unstable();
        without.dedup();
    }
    Ok(Formation { installed, sources, longest, without })
}

/// After an orderly stop of all members any majority of them may start without the rest: a later view can only have
/// been started by another majority, so one of these would know of it. One alone would not: another one that started
/// alone before, and crashed, may hold later messages.
fn is_closed(ballot: &Ballot<'_>, installed: &View, sources: &[ServerId]) -> bool {
    let closed = sources.iter().filter(|source| ballot.reports[source].closed).count();
    let heard = |candidate: &ServerId| ballot.reports.contains_key(candidate);
    closed > installed.members.len() / 2 && outstanding(ballot, installed).iter().all(heard)
}

/// V2, V11: whoever is gone may have gone on without these sources, but not within the suspicion timeout: none of them
/// has promised it anything, so it reached no majority. All of them were in touch with it in the 3 s more that it waited.
fn is_majority_in_touch(ballot: &Ballot<'_>, installed: &View, sources: &[ServerId]) -> bool {
    let in_touch = sources.iter().filter(|source| ballot.reports[source].nearly_continuous).count();
    !removed!("V5-majority")
        && in_touch > ballot.configured.len() / 2
        && outstanding(ballot, installed).into_iter().all(|server| is_witness(ballot, server, installed))
}

/// Candidates that may have installed a view later than `installed` (V2).
fn outstanding(ballot: &Ballot<'_>, installed: &View) -> BTreeSet<ServerId> {
    let promised = ballot.reports.values().flat_map(|report| &report.outstanding);
    promised.filter(|number| **number > installed.number).map(|number| number.proposer).collect()
}

/// V2, V10: whether a member that has only fallen silent was promised a number by another answerer, and not by this
/// source: it lived on, and may have gone on without the source. Who tells is that third server.
fn was_passed_over(ballot: &Ballot<'_>, installed: &View, source: ServerId) -> bool {
    let may_live = |candidate: ServerId| {
        installed.member(candidate).is_some()
            && !ballot.reports.contains_key(&candidate)
            && !ballot.refused.contains(&candidate)
    };
    let unknown = |number: &&ViewNumber| {
        **number > installed.number
            && may_live(number.proposer)
            && !ballot.reports[&source].outstanding.contains(number)
    };
    !removed!("V10-third")
        && ballot.reports.values().flat_map(|report| &report.outstanding).any(|n| unknown(&n))
}

/// Those whose answer is missing before the last process to fail is surely among the answerers (V5).
fn missing_witnesses(ballot: &Ballot<'_>, installed: &View) -> Vec<ServerId> {
    let mut witnesses: BTreeSet<_> = installed.members.iter().map(|member| member.server).collect();
    witnesses.extend(outstanding(ballot, installed).into_iter().filter(|_| !removed!("V5-outstanding")));
    witnesses.into_iter().filter(|server| !is_witness(ballot, *server, installed)).collect()
}

/// V6: a wiped or restored disk has never "answered". That of a member must have forgotten nothing since the life in
/// which it was named, that of a candidate nothing since a view that it has held itself; whether it holds the view's log,
/// or has moved rows aside (D5), or lost some to rot (D4), is another question, for [`sources`].
fn is_witness(ballot: &Ballot<'_>, server: ServerId, installed: &View) -> bool {
    let Some(report) = ballot.reports.get(&server) else { return false };
    let membership = installed.member(server).or_else(|| report.installed.member(server));
    let remembers = membership
        .is_some_and(|member| report.born <= member.incarnation && member.incarnation <= report.incarnation);
    (remembers || removed!("V6-wiped")) && is_latest_life(ballot, server, report)
}

fn is_latest_life(ballot: &Ballot<'_>, server: ServerId, report: &Report) -> bool {
    ballot.incarnations.get(&server).is_none_or(|known| report.incarnation >= *known)
}

/// D4: those that hold the last view and lack rows, which they may get yet.
fn incomplete(ballot: &Ballot<'_>, installed: &View) -> Vec<ServerId> {
    let lacks = |report: &Report| report.empty && report.installed.number == installed.number;
    ballot.reports.iter().filter(|(_, report)| lacks(report)).map(|(server, _)| *server).collect()
}

/// V3 with D4: a suspect disk is a source only if there is no whole one, and none is waited for any longer.
fn sources(ballot: &Ballot<'_>, installed: &View, all_heard: bool) -> Vec<ServerId> {
    let holding = |standing: Standing| -> Vec<ServerId> {
        let holds = |server: &ServerId, report: &Report| {
            (report.installed.number == installed.number || removed!("V3-last-view"))
                && report.standing == standing
                && !report.empty
                && is_latest_life(ballot, *server, report)
        };
        ballot
            .reports
            .iter()
            .filter(|(server, report)| holds(server, report))
            .map(|(server, _)| *server)
            .collect()
    };
    let whole = holding(Standing::Whole);
    if whole.is_empty() && all_heard { holding(Standing::Suspect) } else { whole }
}

/// V4: the longest log among the sources; of equal ones the first listed.
fn longest(ballot: &Ballot<'_>, sources: &[ServerId]) -> Option<ServerId> {
    let length = |server: &ServerId| {
        let last = ballot.reports[server].last;
        (last.view, last.index)
    };
    sources.iter().copied().rev().max_by_key(length)
}

fn others(ballot: &Ballot<'_>) -> Vec<ServerId> {
    ballot.configured.iter().copied().filter(|server| !ballot.reports.contains_key(server)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Position;
    use crate::types::{LogIndex, Member};

    const ALL: [ServerId; 3] = [ServerId(1), ServerId(2), ServerId(3)];

    fn view(counter: u32, proposer: u8, members: &[u8]) -> View {
        let member = |&id| Member { server: ServerId(id), incarnation: Incarnation(1) };
        View {
            number: ViewNumber { counter, proposer: ServerId(proposer) },
            members: members.iter().map(member).collect(),
        }
    }

    fn report(installed: &View, last: u64) -> Report {
        Report {
            incarnation: Incarnation(1),
            born: Incarnation(1),
            promised: installed.number,
            outstanding: Vec::new(),
            installed: installed.clone(),
            last: Position { index: LogIndex(last), view: installed.number, chain: 0 },
            standing: Standing::Whole,
            continuous: false,
            nearly_continuous: false,
            empty: false,
            closed: false,
            rebasing: false,
        }
    }

    fn decide(reports: &[(u8, Report)], dead: &[u8]) -> Result<Formation, Awaited> {
        decide_after(false, reports, dead)
    }

    fn decide_after(waited: bool, reports: &[(u8, Report)], dead: &[u8]) -> Result<Formation, Awaited> {
        decide_with(waited, reports, dead, dead)
    }

    fn decide_with(
        waited: bool,
        reports: &[(u8, Report)],
        dead: &[u8],
        refused: &[u8],
    ) -> Result<Formation, Awaited> {
        let set = |ids: &[u8]| ids.iter().map(|&id| ServerId(id)).collect();
        may_form(&Ballot {
            configured: &ALL,
            dead: &set(dead),
            refused: &set(refused),
            reports: &reports.iter().map(|(id, report)| (ServerId(*id), report.clone())).collect(),
            incarnations: &ALL.iter().map(|&id| (id, Incarnation(1))).collect(),
            waited,
        })
    }

    #[test]
    fn a_continuous_survivor_goes_on_alone() {
        let last = view(7, 1, &[1, 2, 3]);
        let mut survivor = report(&last, 9);
        survivor.continuous = true;
        let formation = decide(&[(3, survivor)], &[1, 2]).unwrap();
        assert_eq!((formation.longest, formation.without), (ServerId(3), Vec::new()));
    }

    #[test]
    fn a_restarted_server_waits_for_all_members_of_the_last_view() {
        let last = view(7, 1, &[1, 2, 3]);
        let awaited = decide(&[(3, report(&last, 9))], &[1, 2]).unwrap_err();
        assert_eq!(awaited.servers, [ServerId(1), ServerId(2)]);
    }

    #[test]
    fn after_a_while_whoever_answers_goes_on_provisionally_even_from_a_suspect_disk() {
        let last = view(7, 1, &[1, 2, 3]);
        let formation = decide_after(true, &[(3, report(&last, 9))], &[1, 2]).unwrap();
        assert_eq!(formation.without, [ServerId(1), ServerId(2)]);
        let mut suspect = report(&last, 9);
        suspect.standing = Standing::Suspect;
        assert_eq!(decide_after(true, &[(3, suspect)], &[1, 2]).unwrap().sources, [ServerId(3)]);
        let mut wiped = report(&last, 0);
        wiped.standing = Standing::Partial;
        assert!(decide_after(true, &[(3, wiped)], &[1, 2]).is_err());
    }

    #[test]
    fn the_longest_log_among_the_holders_of_the_highest_view_wins() {
        let (old, new) = (view(7, 1, &[1, 2, 3]), view(8, 2, &[2, 3]));
        let reports = [(1, report(&old, 90)), (2, report(&new, 20)), (3, report(&new, 30))];
        let formation = decide(&reports, &[]).unwrap();
        assert_eq!((formation.sources, formation.longest), (vec![ServerId(2), ServerId(3)], ServerId(3)));
    }

    #[test]
    fn an_outstanding_candidate_must_be_heard() {
        let last = view(7, 1, &[2]);
        let mut promised = report(&last, 9);
        promised.promised = ViewNumber { counter: 8, proposer: ServerId(3) };
        promised.outstanding = vec![promised.promised];
        assert_eq!(decide(&[(2, promised)], &[1, 3]).unwrap_err().servers, [ServerId(3)]);
    }

    #[test]
    fn a_source_that_was_passed_over_learns_so_from_the_third_server() {
        let last = view(7, 1, &[1, 2, 3]);
        let number = ViewNumber { counter: 8, proposer: ServerId(1) };
        let dropped = Report { outstanding: vec![number], ..report(&last, 9) };
        let unaware = Report { continuous: true, ..report(&last, 9) };
        let aware = Report { outstanding: vec![number], ..unaware.clone() };
        let decide = |source: &Report, refused: &[u8]| {
            decide_with(false, &[(2, dropped.clone()), (3, source.clone())], &[1], refused)
        };
        assert_eq!(decide(&unaware, &[]).unwrap_err().servers, [ServerId(1)]);
        assert!(decide(&unaware, &[1]).is_ok(), "it is dead for certain");
        assert!(decide(&aware, &[]).is_ok(), "it has fallen silent since");
    }

    #[test]
    fn a_majority_that_promised_nothing_to_whoever_is_gone_needs_less_touch_with_it() {
        let last = view(7, 1, &[1, 2, 3]);
        let nearly = Report { nearly_continuous: true, ..report(&last, 9) };
        assert!(decide(&[(2, nearly.clone()), (3, nearly.clone())], &[1]).is_ok());
        assert_eq!(decide(&[(3, nearly.clone())], &[1, 2]).unwrap_err().servers, [ServerId(1), ServerId(2)]);
        let number = ViewNumber { counter: 8, proposer: ServerId(1) };
        let promised = Report { outstanding: vec![number], ..nearly.clone() };
        assert_eq!(decide(&[(2, promised), (3, nearly)], &[1]).unwrap_err().servers, [ServerId(1)]);
    }

    #[test]
    fn a_candidate_whose_rows_were_moved_aside_has_answered_for_its_own_proposals_and_a_wiped_one_has_not() {
        let last = view(7, 2, &[2]);
        let abandoned = ViewNumber { counter: 9, proposer: ServerId(1) };
        let survivor = Report { outstanding: vec![abandoned], ..report(&last, 9) };
        let earlier = view(6, 1, &[1, 2, 3]);
        let forgotten = View { number: ViewNumber::NONE, ..view(8, 1, &[1]) };
        for held in [earlier, forgotten] {
            let moved = Report { standing: Standing::Partial, ..report(&held, 9) };
            let formation = decide(&[(1, moved.clone()), (2, survivor.clone())], &[3]).unwrap();
            assert_eq!(formation.sources, [ServerId(2)]);
            let restored = Report { born: Incarnation(2), ..moved };
            let awaited = decide(&[(1, restored), (2, survivor.clone())], &[3]).unwrap_err();
            assert_eq!(awaited.servers, [ServerId(1)]);
        }
    }

    #[test]
    fn a_wiped_or_restored_disk_has_never_answered() {
        let last = view(7, 1, &[1, 2]);
        let mut wiped = report(&View::default(), 0);
        wiped.standing = Standing::Partial;
        (wiped.born, wiped.incarnation) = (Incarnation(9), Incarnation(9));
        assert_eq!(decide(&[(1, wiped), (2, report(&last, 9))], &[3]).unwrap_err().servers, [ServerId(1)]);
        let mut restored = report(&last, 5);
        restored.incarnation = Incarnation(0);
        assert_eq!(decide(&[(1, restored), (2, report(&last, 9))], &[3]).unwrap_err().servers, [ServerId(1)]);
    }

    #[test]
    fn rows_of_a_later_view_on_a_learner_show_that_a_continuous_source_was_left_behind() {
        let old = view(3, 1, &[1, 2]);
        let first = Report { continuous: true, ..report(&old, 23) };
        let learner = |last: ViewNumber| Report {
            standing: Standing::Partial,
            last: Position { index: LogIndex(19), view: last, chain: 0 },
            ..report(&View::default(), 0)
        };
        assert!(decide(&[(1, first.clone()), (3, learner(old.number))], &[2]).is_ok());
        let later = ViewNumber { counter: 4, proposer: ServerId(2) };
        let awaited = decide(&[(1, first), (3, learner(later))], &[2]).unwrap_err();
        assert_eq!(awaited.servers, [ServerId(2)]);
    }

    #[test]
    fn a_member_that_never_installed_the_view_that_names_it_has_answered_all_the_same() {
        let last = view(7, 1, &[1, 2]);
        let mut newcomer = report(&View::default(), 0);
        newcomer.standing = Standing::Partial;
        let formation = decide(&[(1, report(&last, 9)), (2, newcomer)], &[3]).unwrap();
        assert_eq!(formation.sources, [ServerId(1)]);
    }

    #[test]
    fn after_an_orderly_stop_a_majority_of_the_members_may_start_and_one_alone_may_not() {
        let last = view(7, 1, &[1, 2, 3]);
        let mut closed = report(&last, 9);
        closed.closed = true;
        assert!(decide(&[(1, closed.clone())], &[2, 3]).is_err());
        assert!(decide(&[(1, closed.clone()), (3, closed.clone())], &[2]).is_ok());
        assert!(decide(&[(1, closed), (3, report(&last, 9))], &[2]).is_err());
    }

    #[test]
    fn a_suspect_disk_counts_only_when_no_whole_one_can_come() {
        let last = view(7, 1, &[1, 2]);
        let mut suspect = report(&last, 9);
        suspect.standing = Standing::Suspect;
        let whole = report(&last, 8);
        let formation = decide(&[(1, suspect.clone()), (2, whole)], &[3]).unwrap();
        assert_eq!(formation.sources, [ServerId(2)]);
        assert!(decide(&[(1, suspect.clone())], &[2, 3]).is_err());
        let formation = decide(&[(1, suspect.clone()), (2, suspect)], &[3]).unwrap();
        assert_eq!(formation.longest, ServerId(1));
    }

    #[test]
    fn a_disk_that_lacks_rows_has_answered_and_its_log_does_not_count() {
        let last = view(7, 1, &[1, 2]);
        let rotten = Report { empty: true, ..report(&last, 9) };
        let formation = decide(&[(1, rotten.clone()), (2, report(&last, 5))], &[3]).unwrap();
        assert_eq!(formation.sources, [ServerId(2)]);
        let suspect = Report { standing: Standing::Suspect, ..report(&last, 5) };
        let doubtful = [(1, rotten.clone()), (2, suspect)];
        let awaited = decide(&doubtful, &[3]).unwrap_err();
        assert_eq!(awaited.servers, [ServerId(1)], "it may have what the other has lost");
        assert_eq!(decide_after(true, &doubtful, &[3]).unwrap().without, [ServerId(1)]);
        assert!(decide(&[(1, rotten), (2, report(&view(6, 1, &[1, 2]), 5))], &[3]).is_err());
    }

    #[test]
    fn silence_is_waited_for() {
        let last = view(7, 1, &[1, 2, 3]);
        let mut survivor = report(&last, 9);
        survivor.continuous = true;
        assert_eq!(decide(&[(3, survivor)], &[1]).unwrap_err().servers, [ServerId(2)]);
    }
}
