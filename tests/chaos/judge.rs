//! Whether what was done is what the clients were told, and which kill explains what was done twice.

use std::collections::BTreeMap;

/// Times are milliseconds of the machine's wall clock, which all processes share.
pub(crate) type Millis = u64;

/// A server process that was killed.
#[derive(Clone, Debug)]
pub(crate) struct Kill {
    pub(crate) process: u32,
    pub(crate) started: Millis,
    /// Read before the signal was sent.
    pub(crate) sent: Millis,
    /// Read after the process was gone.
    pub(crate) gone: Millis,
}

/// A line of the ledger: what was really done.
#[derive(Clone, Debug)]
pub(crate) struct Effect {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) process: u32,
    /// Read before it was done.
    pub(crate) at: Millis,
    pub(crate) attempt: u64,
}

/// A row of the table of transfers.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) key: String,
}

/// The last answer to one sending of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    fn member(&self, name: &str) -> Option<String> {
        let body: serde_json::Value = serde_json::from_str(&self.body).ok()?;
        body[name].as_str().map(str::to_owned)
    }

    /// The payment or transfer that it tells of.
    fn id(&self) -> Option<String> {
        let id = self.member("payment_id");
        id.or_else(|| self.member("transfer_id"))
            .filter(|_| self.status == 201)
    }

    fn is_abandoned(&self) -> bool {
        self.status == 409 && self.member("error").as_deref() == Some("abandoned")
    }
}

/// What a run leaves behind. The answers to each key are sorted by where it was sent to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// How long the key of a dead process stays taken.
    pub(crate) lease: Millis,
    /// Whether a request may take over where a process died.
    pub(crate) takes_over: bool,
    /// How often each key was sent.
    pub(crate) times: usize,
    pub(crate) kills: Vec<Kill>,
    pub(crate) payments: BTreeMap<String, Vec<Answer>>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) transfers: BTreeMap<String, Vec<Answer>>,
    pub(crate) rows: Vec<Row>,
}

/// What there is to tell of a run in which everything is as it should be.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) keys: usize,
    pub(crate) effects: usize,
    pub(crate) rows: usize,
    /// Effects of an attempt after the first one.
    pub(crate) takeovers: usize,
    /// Keys that are refused until somebody has looked.
    pub(crate) abandoned: usize,
    pub(crate) extra: Vec<Extra>,
}

/// An effect that was repeated, and why.
#[derive(Debug)]
pub(crate) struct Extra {
    pub(crate) effect: Effect,
    pub(crate) kill: Kill,
    /// When the next effect of the key was.
    pub(crate) next: Millis,
}

/// Judges a run; the error names whatever is not as promised.
pub(crate) fn judge(log: &Log) -> Result<Verdict, Vec<String>> {
    let mut verdict = Verdict {
        keys: log.payments.len() + log.transfers.len(),
        effects: log.effects.len(),
        rows: log.rows.len(),
        takeovers: log.effects.iter().filter(|e| e.attempt > 1).count(),
        ..Verdict::default()
    };
    let mut faults = Vec::new();

    let mut effects: BTreeMap<&str, Vec<&Effect>> = BTreeMap::new();
    for effect in &log.effects {
        effects.entry(&effect.key).or_default().push(effect);
    }
    for (key, answers) in &log.payments {
        let mut effects = effects.remove(&key[..]).unwrap_or_default();
        effects.sort_by_key(|effect| effect.attempt);
        let judged = same_answer(log, answers)
            .and_then(|answer| judge_payment(log, answer, &effects, &mut verdict));
        faults.extend(judged.err().map(|fault| format!("payment {key}: {fault}")));
    }
    faults.extend(
        effects
            .keys()
            .map(|key| format!("payment {key}: nobody asked for it")),
    );

    let mut rows: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in &log.rows {
        rows.entry(&row.key).or_default().push(row);
    }
    for (key, answers) in &log.transfers {
        let rows = rows.remove(&key[..]).unwrap_or_default();
        let judged = same_answer(log, answers)
            .and_then(|answer| judge_transfer(answer, &rows, &mut verdict));
        faults.extend(judged.err().map(|fault| format!("transfer {key}: {fault}")));
    }
    faults.extend(
        rows.keys()
            .map(|key| format!("transfer {key}: nobody asked for it")),
    );

    if faults.is_empty() {
        Ok(verdict)
    } else {
        Err(faults)
    }
}

/// P2: everyone who asked got this answer.
fn same_answer<'a>(log: &Log, answers: &'a [Answer]) -> Result<&'a Answer, String> {
    let [answer, others @ ..] = answers else {
        return Err("no answer".to_owned());
    };
    if answers.len() != log.times {
        return Err(format!("{} answers", answers.len()));
    }
    if let Some(other) = others.iter().find(|other| *other != answer) {
        return Err(format!("two answers: {answer:?} and {other:?}"));
    }
    if answer.id().is_none() && (log.takes_over || !answer.is_abandoned()) {
        return Err(format!("an answer that is none: {answer:?}"));
    }
    Ok(answer)
}

fn judge_payment(
    log: &Log,
    answer: &Answer,
    effects: &[&Effect],
    verdict: &mut Verdict,
) -> Result<(), String> {
    let Some(id) = answer.id() else {
        verdict.abandoned += 1;
        return match effects {
            [] => Ok(()),
            // Its process died before the record was written.
            [effect] => killed(log, effect).map(drop),
            _ => Err(format!("taken over, though refused: {effects:?}")),
        };
    };
    let Some(last) = effects.last() else {
        return Err("no effect".to_owned());
    };
    if last.id != id {
        return Err(format!("{id} was answered, and {last:?} done last"));
    }
    // Nothing fails by itself, so an attempt after the first one is a takeover, also of one that
    // did not come to its effect.
    if !log.takes_over && effects.iter().any(|effect| effect.attempt > 1) {
        return Err(format!("taken over, though refused: {effects:?}"));
    }
    for pair in effects.windows(2) {
        let [effect, next] = pair else { continue };
        if effect.attempt == next.attempt {
            return Err(format!("two first attempts: {effect:?} and {next:?}"));
        }
        let kill = killed(log, effect)?;
        // A process that lives renews its lease at each third of it. So at its death two thirds
        // are left, and nobody else begins meanwhile; one third is for a machine that is late.
        if next.at < kill.sent + log.lease / 3 {
            return Err(format!(
                "{next:?} did not wait for the lease of {effect:?}, {kill:?}"
            ));
        }
        verdict.extra.push(Extra {
            effect: (*effect).clone(),
            kill: kill.clone(),
            next: next.at,
        });
    }
    Ok(())
}

/// The kill after which the record of an effect could not be written any more. That it was not
/// written before says the answer, which is another one: nobody got this one.
fn killed<'a>(log: &'a Log, effect: &Effect) -> Result<&'a Kill, String> {
    let kill = log.kills.iter().find(|kill| {
        kill.process == effect.process && (kill.started..=kill.gone).contains(&effect.at)
    });
    kill.ok_or_else(|| format!("no kill explains {effect:?}"))
}

/// P7: whatever was killed, there is one row where there is an answer, and none without.
fn judge_transfer(answer: &Answer, rows: &[&Row], verdict: &mut Verdict) -> Result<(), String> {
    match (answer.id(), rows) {
        (Some(id), [row]) if row.id == id => Ok(()),
        (None, []) => {
            verdict.abandoned += 1;
            Ok(())
        }
        (id, rows) => Err(format!("{id:?} was answered, and there is {rows:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paid(id: &str) -> Answer {
        Answer {
            status: 201,
            body: format!(r#"{{"payment_id": "{id}"}}"#),
        }
    }

    fn abandoned() -> Answer {
        Answer {
            status: 409,
            body: r#"{"error": "abandoned"}"#.to_owned(),
        }
    }

    fn effect(id: &str, process: u32, at: Millis, attempt: u64) -> Effect {
        Effect {
            id: id.to_owned(),
            key: "k".to_owned(),
            process,
            at,
            attempt,
        }
    }

    /// Process 7 lived from 1 s to 5 s; leases last for 3 s.
    fn log(takes_over: bool, answers: [Answer; 2], effects: &[Effect]) -> Log {
        Log {
            lease: 3_000,
            takes_over,
            times: 2,
            kills: vec![Kill {
                process: 7,
                started: 1_000,
                sent: 5_000,
                gone: 5_010,
            }],
            payments: [("k".to_owned(), answers.into())].into(),
            effects: effects.to_vec(),
            ..Log::default()
        }
    }

    /// The faults, each of which holds one of these words.
    fn assert_fault(log: &Log, word: &str) {
        let faults = judge(log).expect_err("a fault");
        assert!(
            faults.iter().any(|fault| fault.contains(word)),
            "{faults:?}"
        );
    }

    fn both(id: &str) -> [Answer; 2] {
        [paid(id), paid(id)]
    }

    #[test]
    fn one_effect_and_one_answer_are_right() {
        let verdict = judge(&log(true, both("a"), &[effect("a", 8, 4_000, 1)])).unwrap();
        assert_eq!((verdict.keys, verdict.effects), (1, 1));
        assert!(verdict.extra.is_empty());
    }

    #[test]
    fn an_effect_before_a_kill_may_be_repeated_after_the_lease() {
        for at in [1_000, 4_990, 5_005] {
            let effects = [effect("a", 7, at, 1), effect("b", 8, 7_000, 2)];
            let verdict = judge(&log(true, both("b"), &effects)).unwrap();
            assert_eq!((verdict.extra.len(), verdict.takeovers), (1, 1));
            assert_eq!(verdict.extra[0].effect.id, "a");
        }
        // And once more, were its process killed too.
        let effects = [
            effect("a", 7, 4_990, 1),
            effect("b", 9, 7_000, 2),
            effect("c", 8, 9_000, 3),
        ];
        assert_fault(&log(true, both("c"), &effects), "no kill explains");
        let mut twice = log(true, both("c"), &effects);
        twice.kills.push(Kill {
            process: 9,
            started: 5_000,
            sent: 7_001,
            gone: 7_002,
        });
        assert_eq!(judge(&twice).unwrap().extra.len(), 2);
    }

    #[test]
    fn an_extra_effect_without_its_kill_fails() {
        let next = effect("b", 8, 9_000, 2);
        // Another process; before that process was there; after it was gone.
        for first in [
            effect("a", 6, 4_990, 1),
            effect("a", 7, 999, 1),
            effect("a", 7, 5_011, 1),
        ] {
            let log = log(true, both("b"), &[first, next.clone()]);
            assert_fault(&log, "no kill explains");
        }
    }

    #[test]
    fn a_second_effect_while_the_lease_lasts_fails() {
        for at in [4_000, 5_500, 5_999] {
            let effects = [effect("a", 7, 3_000, 1), effect("b", 8, at, 2)];
            assert_fault(&log(true, both("b"), &effects), "did not wait");
        }
    }

    #[test]
    fn a_record_that_was_lost_fails() {
        // The first one was answered, and yet the key was executed again.
        let effects = [effect("a", 7, 4_990, 1), effect("b", 8, 9_000, 2)];
        assert_fault(&log(true, both("a"), &effects), "done last");
        assert_fault(&log(true, [paid("a"), paid("b")], &effects), "two answers");
        let effects = [effect("a", 7, 4_990, 1), effect("b", 8, 9_000, 1)];
        assert_fault(&log(true, both("b"), &effects), "two first attempts");
    }

    #[test]
    fn every_key_has_an_effect_and_every_effect_a_key() {
        assert_fault(&log(true, both("a"), &[]), "no effect");
        let mut stray = effect("b", 8, 4_000, 1);
        stray.key = "other".to_owned();
        let effects = [effect("a", 8, 4_000, 1), stray];
        assert_fault(&log(true, both("a"), &effects), "nobody asked");
    }

    #[test]
    fn an_answer_that_is_no_answer_fails() {
        let broken = Answer {
            status: 500,
            body: String::new(),
        };
        let effects = [effect("a", 8, 4_000, 1)];
        assert_fault(&log(true, [broken.clone(), broken], &effects), "none");
        // With takeovers nothing stays abandoned.
        assert_fault(&log(true, [abandoned(), abandoned()], &effects), "none");
        let mut one = log(true, both("a"), &effects);
        one.times = 5;
        assert_fault(&one, "2 answers");
    }

    #[test]
    fn refused_takeovers_repeat_nothing() {
        let refused = || [abandoned(), abandoned()];
        let before = effect("a", 7, 4_990, 1);
        for effects in [&[][..], std::slice::from_ref(&before)] {
            let verdict = judge(&log(false, refused(), effects)).unwrap();
            assert_eq!(verdict.abandoned, 1);
        }
        let living = [effect("a", 8, 4_990, 1)];
        assert_fault(&log(false, refused(), &living), "no kill explains");
        let again = [before, effect("b", 8, 9_000, 2)];
        assert_fault(&log(false, refused(), &again), "though refused");
        assert_fault(&log(false, both("b"), &again), "though refused");
        assert_fault(&log(false, both("b"), &again[1..]), "though refused");
    }

    #[test]
    fn transfers_have_one_row_and_one_answer() {
        let row = |id: &str| Row {
            id: id.to_owned(),
            key: "k".to_owned(),
        };
        let moved = |id: &str| Answer {
            status: 201,
            body: format!(r#"{{"transfer_id": "{id}"}}"#),
        };
        let log = |takes_over, answer: Answer, rows: &[Row]| Log {
            takes_over,
            times: 2,
            transfers: [("k".to_owned(), vec![answer.clone(), answer])].into(),
            rows: rows.to_vec(),
            ..Log::default()
        };
        assert_eq!(judge(&log(true, moved("a"), &[row("a")])).unwrap().rows, 1);
        assert_eq!(judge(&log(false, abandoned(), &[])).unwrap().abandoned, 1);
        assert_fault(&log(true, moved("a"), &[]), "there is");
        assert_fault(&log(true, moved("a"), &[row("b")]), "there is");
        assert_fault(&log(true, moved("a"), &[row("a"), row("b")]), "there is");
        assert_fault(&log(false, abandoned(), &[row("a")]), "there is");
        let mut stray = row("a");
        stray.key = "other".to_owned();
        assert_fault(&log(true, moved("b"), &[row("b"), stray]), "nobody asked");
    }
}
