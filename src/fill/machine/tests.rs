//! The machine alone: what it asks for after each event, and promises under any order of events.
//!
//! A life is written down as the names of its effects, one after the other. The shell in these
//! tests answers every effect with success, except where a script says otherwise.

mod promises;

use std::collections::VecDeque;

use bytes::Bytes;
use http::StatusCode;

use super::*;
use crate::base::key::{CacheKey, Digest};
use crate::base::operation::IMAGE_CROPPING;
use crate::base::picture::ObjectName;
use crate::ledger::budget::{Budget, BudgetRefusal, Window};
use crate::upstream::{ErrorReply, Refusal, RefusalKind};

const URL_TTL: Duration = Duration::from_secs(84_600);
const WON: Won = Won { id: CallId(7), generation: 0 };

fn reservation() -> Reservation {
    Reservation {
        namespace: "ailab-v1".to_owned(),
        key: CacheKey::of(b"picture", 400, 300),
        refresh: false,
        team: "web".to_owned(),
        credits: 3,
        budgets: Vec::new(),
        image: Digest::of(b"picture"),
        width: 400,
        height: 300,
    }
}

fn answer() -> Answer {
    let text =
        r#"{"request_id":"R","log_id":"L","error_code":0,"data":{"url":"https://results.example/1.jpg"}}"#;
    Answer::read(text, &IMAGE_CROPPING).unwrap()
}

fn fetched() -> Fetched {
    let bytes = Bytes::from_static(b"\xFF\xD8\xFF a result");
    Fetched { name: ObjectName::of(&bytes).unwrap(), bytes }
}

fn now() -> Timestamp {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

/// What another call left under the key.
fn other_record(generation: u64) -> Record {
    let other = b"\xFF\xD8\xFF another result";
    Record {
        version: Record::VERSION,
        namespace: "ailab-v1".to_owned(),
        key: reservation().key,
        generation,
        answer: "{}".to_owned(),
        digest: Digest::of(other),
        extension: "jpg".to_owned(),
        bytes: other.len() as u64,
        team: "mobile".to_owned(),
        credits: 3,
        stored_at: now(),
        upstream_request_id: "R0".to_owned(),
        upstream_log_id: "L0".to_owned(),
        image: reservation().image,
        width: 400,
        height: 300,
    }
}

fn away<T>() -> Result<T, LedgerError> {
    Err(LedgerError::Unavailable("planted".to_owned()))
}

fn store_away<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("planted".to_owned()))
}

fn spool_full<T>() -> Result<T, LedgerError> {
    Err(LedgerError::SpoolFull { wanted: 3, used: 2, max: 4 })
}

fn contradiction() -> LedgerError {
    LedgerError::Contradiction { id: 7, state: "stored".to_owned(), wanted: "answered" }
}

fn over_budget() -> Reserved {
    let budget = Budget { scope: Scope::Global, window: Window::Day, limit: 3, enforced: true };
    Reserved::OverBudget(BudgetRefusal { budget, resets_at: now(), resets_in: Duration::from_secs(60) })
}

fn resting() -> Reserved {
    Reserved::Resting { until: now(), wait: Duration::from_secs(60) }
}

fn error_reply(status: u16, code: &str, body: Option<&'static str>) -> ErrorReply {
    let status = StatusCode::from_u16(status).unwrap();
    ErrorReply { status, body: body.map(|body| Bytes::from_static(body.as_bytes())), code: code.to_owned() }
}

fn refusal(kind: RefusalKind, status: u16) -> Reply {
    Reply::Refused(Refusal { kind, reply: error_reply(status, "CODE", Some("{}")) })
}

/// The first word of a value's debug form: the name of its variant.
fn word(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.chars().take_while(char::is_ascii_alphanumeric).collect()
}

fn show_verdict(verdict: &Verdict) -> String {
    match verdict {
        Ok(filled) => format!("Ok {}", word(&filled.source)),
        Err(error) => word(error),
    }
}

/// An effect as it stands in a life; `Pause` leaves its time out, which has a test of its own.
fn show(effect: &Effect) -> String {
    match effect {
        Effect::Book(_, Booking::Spooled { .. }) => "Book(spooled)".to_owned(),
        Effect::Book(_, booking) => format!("Book({})", booking.state().as_str()),
        Effect::Finish(verdict) => format!("Finish({})", show_verdict(verdict)),
        Effect::Tell(verdict) => format!("Tell({})", show_verdict(verdict)),
        Effect::RefuseTeam(error) => format!("RefuseTeam({})", word(error)),
        effect => word(effect),
    }
}

/// The event of success.
fn success(effect: &Effect) -> Event {
    match effect {
        Effect::TakeSlot => Event::Slot(Ok(())),
        Effect::Admit => Event::Admitted(Admission::Payer(Box::new(reservation()))),
        Effect::CheckRoom => Event::Room(Ok(())),
        Effect::EnterCircuit => Event::Entered(Ok(())),
        Effect::Reserve => Event::Reserved(Ok(Reserved::Won(WON))),
        Effect::LookAgain => Event::LookedAgain(Ok(Standing::Nothing)),
        Effect::CheckWaiters => Event::Awaited(true),
        Effect::Open => Event::Opened(Ok(Open::Held)),
        Effect::MarkSent(_) => Event::Marked(Ok(Permit::Granted)),
        Effect::Send => Event::Replied(Reply::Answered(answer())),
        Effect::Retry(_) => Event::MayRetry(true),
        Effect::Book(..) => Event::Booked(Ok(())),
        Effect::Fetch(_) => Event::FetchEnded(Ok(fetched()), Duration::from_secs(1)),
        Effect::PutObject(_) => Event::ObjectKept(Ok(()), now()),
        Effect::PutRecord(record) => Event::RecordKept(Ok(Record::clone(record))),
        Effect::Import(_)
        | Effect::Pause(_)
        | Effect::StepAside(_)
        | Effect::RefuseTeam(_)
        | Effect::Tell(_) => Event::Done,
        Effect::Finish(_) | Effect::Stop => panic!("nothing comes after the end"),
    }
}

type Script = Vec<(&'static str, Event)>;

/// Runs a machine to its end. Each line of the script answers the next effect that starts with its
/// first word; all lines must be used.
fn live(mut machine: Machine, script: Script) -> Vec<Effect> {
    let mut script = VecDeque::from(script);
    let mut life = Vec::new();
    let mut event = Event::Started;
    while life.len() < 300 {
        let effect = machine.step(event);
        if matches!(effect, Effect::Finish(_) | Effect::Stop) {
            life.push(effect);
            let unused: Vec<_> = script.iter().map(|(at, _)| at).collect();
            assert!(unused.is_empty(), "{unused:?} did not come up in {}", show_life(&life));
            return life;
        }
        event = match script.front() {
            Some((at, _)) if show(&effect).starts_with(at) => script.pop_front().unwrap().1,
            _ => success(&effect),
        };
        life.push(effect);
    }
    panic!("no end: {}", show_life(&life));
}

fn show_life(life: &[Effect]) -> String {
    life.iter().map(show).collect::<Vec<_>>().join(" ")
}

/// A life that goes on like a successful one up to where `expected` begins.
#[track_caller]
fn check(script: Script, expected: &str) {
    let life = show_life(&live(Machine::new(URL_TTL), script));
    let start = expected.split(' ').next().unwrap();
    let from = life.find(start).unwrap_or_else(|| panic!("no {start} in {life}"));
    let usual = format!("{BUYING} {KEEPING}");
    assert!(usual.starts_with(life[..from].trim_end()), "an unusual start: {life}");
    assert_eq!(&life[from..], expected);
}

/// Up to the answer.
const BUYING: &str =
    "TakeSlot Admit CheckRoom EnterCircuit Reserve LookAgain CheckWaiters Open MarkSent Send Book(answered)";
/// From the answer on.
const KEEPING: &str = "Fetch PutObject PutRecord Book(stored) Finish(Ok Bought)";

#[test]
fn the_life_of_a_fill_is_the_documented_one() {
    let life = live(Machine::new(URL_TTL), Vec::new());
    assert_eq!(show_life(&life), format!("{BUYING} {KEEPING}"));
    for effect in &life {
        match effect {
            Effect::MarkSent(id) => assert_eq!(*id, WON.id),
            Effect::Book(id, Booking::Answered { text, request_id, log_id }) => {
                assert_eq!((*id, text), (WON.id, answer().text()));
                assert_eq!((request_id.as_str(), log_id.as_str()), ("R", "L"));
            }
            Effect::Book(id, Booking::Stored { record, holds_key }) => {
                assert_eq!((*id, *holds_key), (WON.id, true));
                assert_eq!(**record, bought_record());
            }
            Effect::Fetch(url) => assert_eq!(url, answer().url()),
            Effect::PutObject(object) => assert_eq!(object.bytes, fetched().bytes),
            Effect::PutRecord(record) => assert_eq!(**record, bought_record()),
            Effect::Finish(Ok(filled)) => assert_eq!(*filled.record, bought_record()),
            _ => {}
        }
    }
}

/// What is kept of [`answer`] for [`reservation`].
fn bought_record() -> Record {
    let Fetched { name, bytes } = fetched();
    Record {
        version: 1,
        namespace: "ailab-v1".to_owned(),
        key: reservation().key,
        generation: WON.generation,
        answer: answer().text().expose().replace("https://results.example/1.jpg", &name.path()),
        digest: name.digest,
        extension: "jpg".to_owned(),
        bytes: bytes.len() as u64,
        team: "web".to_owned(),
        credits: 3,
        stored_at: now(),
        upstream_request_id: "R".to_owned(),
        upstream_log_id: "L".to_owned(),
        image: reservation().image,
        width: 400,
        height: 300,
    }
}

#[test]
fn nothing_is_reserved_without_a_turn_a_payer_and_room() {
    let busy = GatewayError::TooBusy { wait: Duration::from_secs(9) };
    check(vec![("TakeSlot", Event::Slot(Err(busy)))], "TakeSlot Finish(TooBusy)");
    check(vec![("TakeSlot", Event::Admitted(Admission::Nobody))], "TakeSlot Stop");
    check(vec![("Admit", Event::Admitted(Admission::Nobody))], "Admit Stop");
    check(vec![("CheckRoom", Event::Room(store_away()))], "CheckRoom Finish(NoRoom)");
}

#[test]
fn when_one_team_may_not_pay_the_next_is_asked_and_its_rate_before_it() {
    let refused = || Event::Admitted(Admission::Refused(GatewayError::Draining));
    let nobody = || Event::Admitted(Admission::Nobody);
    check(
        vec![("Admit", refused()), ("Admit", refused()), ("Admit", nobody())],
        "Admit RefuseTeam(Draining) Admit RefuseTeam(Draining) Admit Stop",
    );
    let unrated = Event::Admitted(Admission::Unrated);
    check(vec![("Admit", unrated), ("Admit", nobody())], "Admit TakeSlot Admit Stop");
}

#[test]
fn every_answer_of_the_ledger_to_a_reservation_is_followed() {
    let reserved = |reserved| ("Reserve", Event::Reserved(Ok(reserved)));
    let nobody = ("Admit", Event::Admitted(Admission::Nobody));
    check(
        vec![reserved(Reserved::Held(CallId(1))), ("TakeSlot", Event::Admitted(Admission::Nobody))],
        "Reserve StepAside TakeSlot Stop",
    );
    check(vec![reserved(Reserved::Stored(Box::new(other_record(0))))], "Reserve Finish(Ok Ledger)");
    check(vec![reserved(resting())], "Reserve Finish(Resting)");
    check(vec![reserved(over_budget()), nobody], "Reserve RefuseTeam(OverBudget) Admit Stop");
    check(vec![reserved(Reserved::Frozen(Scope::Global))], "Reserve Finish(Frozen)");
    let nobody = ("Admit", Event::Admitted(Admission::Nobody));
    let team = Reserved::Frozen(Scope::Team("web".to_owned()));
    check(vec![reserved(team), nobody], "Reserve RefuseTeam(Frozen) Admit Stop");
    check(vec![("Reserve", Event::Reserved(away()))], "Reserve Finish(LedgerUnavailable)");
}

#[test]
fn a_result_that_is_in_the_store_by_then_is_imported_and_nothing_bought() {
    let there = |generation| looked_again(Ok(Standing::Result(other_record(generation))));
    check(vec![there(0)], "LookAgain Book(released) Import Finish(Ok Store)");
    check(
        vec![there(0), ("Book", Event::Booked(away()))],
        "LookAgain Book(released) Tell(Ok Store) Book(released) Import Finish(Ok Store)",
    );
    // What a refresh is to replace does not stop it.
    let life = live(Machine::new(URL_TTL), vec![won(1), there(0)]);
    assert_eq!(show_life(&life), format!("{BUYING} {KEEPING}"));
    // Nor does a store that cannot be asked: the ledger has decided.
    let life = live(Machine::new(URL_TTL), vec![looked_again(store_away())]);
    assert_eq!(show_life(&life), format!("{BUYING} {KEEPING}"));
}

#[test]
fn a_store_that_had_no_turn_for_us_ends_the_fill_before_paying() {
    let busy = || StoreError::Busy("planted".to_owned());
    check(vec![("CheckRoom", Event::Room(Err(busy())))], "CheckRoom Finish(StoreBusy)");
    check(vec![looked_again(Err(busy()))], "LookAgain Book(released) Finish(StoreBusy)");
}

#[test]
fn nothing_is_bought_that_could_not_be_kept_under_its_key() {
    let damaged = looked_again(Err(StoreError::Corrupt("planted".to_owned())));
    check(vec![damaged], "LookAgain Book(released) Finish(StoreUnavailable)");
    let remains = |generation| looked_again(Ok(Standing::OrphanRecord(other_record(generation))));
    check(vec![remains(0)], "LookAgain Book(released) Finish(StoreUnavailable)");
    // Once the loss is booked, the generation is a higher one.
    let life = live(Machine::new(URL_TTL), vec![won(1), remains(0)]);
    assert_eq!(show_life(&life), format!("{BUYING} {KEEPING}"));
}

/// What the second look at the store came to.
fn looked_again(standing: Result<Standing, StoreError>) -> (&'static str, Event) {
    ("LookAgain", Event::LookedAgain(standing))
}

/// A row of this generation.
fn won(generation: u64) -> (&'static str, Event) {
    ("Reserve", Event::Reserved(Ok(Reserved::Won(Won { id: WON.id, generation }))))
}

#[test]
fn the_circuit_is_asked_last_of_all_before_anything_is_reserved() {
    let open = GatewayError::CircuitOpen { wait: Duration::from_secs(9) };
    check(vec![("EnterCircuit", Event::Entered(Err(open)))], "EnterCircuit Finish(CircuitOpen)");
}

fn not_opened(error: NotSent) -> (&'static str, Event) {
    ("Open", Event::Opened(Err(error)))
}

fn connect() -> NotSent {
    NotSent::Connect("planted".to_owned())
}

fn upload() -> NotSent {
    NotSent::Upload("planted".to_owned())
}

fn no_retry() -> (&'static str, Event) {
    ("Retry", Event::MayRetry(false))
}

#[test]
fn an_order_that_never_went_out_whole_is_tried_three_times_and_released() {
    let life = live(Machine::new(URL_TTL), vec![not_opened(connect()), not_opened(upload())]);
    assert_eq!(
        show_life(&life),
        format!("{BUYING} {KEEPING}").replace("Open", "Open Retry CheckWaiters Open Retry CheckWaiters Open")
    );
    let retries: Vec<_> = life.iter().filter(|effect| matches!(effect, Effect::Retry(_))).collect();
    assert!(matches!(
        retries[..],
        [Effect::Retry(Retry { number: 1, .. }), Effect::Retry(Retry { number: 2, .. })]
    ));
    check(
        vec![not_opened(connect()), not_opened(upload()), not_opened(connect())],
        "Open Retry CheckWaiters Open Retry CheckWaiters Open Book(released) Finish(UpstreamUnreachable)",
    );
    check(vec![not_opened(connect()), no_retry()], "Open Retry Book(released) Finish(UpstreamUnreachable)");
}

#[test]
fn an_order_whose_connection_is_lost_while_its_tail_is_held_goes_out_again_on_a_row_of_its_own() {
    let lost = || ("Send", Event::Replied(Reply::NotSent(upload())));
    let anew = BUYING;
    check(vec![lost()], &format!("Send Book(released) Retry {anew} {KEEPING}"));
    check(vec![lost(), no_retry()], "Send Book(released) Retry Finish(UpstreamUnreachable)");
    // Three tries in all, wherever the connection was lost.
    let second = anew.replace(" Book(answered)", "").replace("Open", "Open Retry CheckWaiters Open");
    check(
        vec![lost(), not_opened(connect()), lost()],
        &format!("Send Book(released) Retry {second} Book(released) Finish(UpstreamUnreachable)"),
    );
}

#[test]
fn what_flow_control_refuses_is_bought_anew_twice_each_time_on_a_row_of_its_own() {
    let throttled = |seconds: Option<u64>| {
        let reply = refusal(RefusalKind::Flow { retry_after: seconds.map(Duration::from_secs) }, 429);
        ("Send", Event::Replied(reply))
    };
    let anew = BUYING.replace(" Book(answered)", "");
    let life = live(Machine::new(URL_TTL), vec![throttled(Some(7)), throttled(None), throttled(Some(9))]);
    assert_eq!(
        show_life(&life),
        format!(
            "{anew} Book(refused) Retry {anew} Book(refused) Retry {anew} Book(refused) Finish(UpstreamThrottled)"
        )
    );
    let asked: Vec<_> = life
        .iter()
        .filter_map(|effect| match effect {
            Effect::Retry(Retry { number, asked, .. }) => Some((*number, asked.map(|wait| wait.as_secs()))),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [(1, Some(7)), (2, None)]);
    check(vec![throttled(None), no_retry()], "Send Book(refused) Retry Finish(UpstreamThrottled)");
    check(vec![throttled(None)], &format!("Send Book(refused) Retry {BUYING} {KEEPING}"));
}

#[test]
fn every_kind_of_reply_has_its_booking_and_its_error() {
    let failed = Reply::Failed;
    let order = || refusal(RefusalKind::Order, 415);
    for (reply, expected) in [
        (order(), "Book(refused) Finish(Upstream)"),
        (refusal(RefusalKind::Other, 404), "Book(refused) Finish(Upstream)"),
        (refusal(RefusalKind::Key, 401), "Book(refused) Finish(UpstreamKeyRefused)"),
        (refusal(RefusalKind::Credits, 429), "Book(refused) Finish(UpstreamCredits)"),
        (failed(error_reply(500, "INNER", Some("{}"))), "Book(failed) Finish(Upstream)"),
        (failed(error_reply(502, "", None)), "Book(failed) Finish(UpstreamNonsense)"),
        (failed(error_reply(200, "CODE", Some("{}"))), "Book(failed) Finish(UpstreamNonsense)"),
        (Reply::Unknown(UnknownCause::Timeout), "Book(unknown) Finish(UpstreamUnreachable)"),
        (Reply::Unknown(UnknownCause::Cut), "Book(unknown) Finish(UpstreamUnreachable)"),
        (Reply::Unknown(UnknownCause::Died), "Book(unknown) Finish(UpstreamUnreachable)"),
        (Reply::Unknown(UnknownCause::Garbage), "Book(unknown) Finish(UpstreamNonsense)"),
        (Reply::Unknown(UnknownCause::NoResult), "Book(unknown) Finish(UpstreamNonsense)"),
    ] {
        check(vec![("Send", Event::Replied(reply))], &format!("Send {expected}"));
    }
    let life = live(Machine::new(URL_TTL), vec![("Send", Event::Replied(order()))]);
    let [.., Effect::Book(_, Booking::Refused { reason, for_order: true }), Effect::Finish(Err(error))] =
        &life[..]
    else {
        panic!("{}", show_life(&life))
    };
    assert_eq!(reason, "415 CODE");
    let GatewayError::Upstream { status, body, .. } = error else { panic!("{error:?}") };
    assert_eq!((status.as_u16(), &body[..]), (415, &b"{}"[..]), "passed through as it is");
}

#[test]
fn a_throttled_caller_is_told_the_wait_the_upstream_asked_for() {
    for (asked, expected) in [(Some(7), 7), (None, 2)] {
        let reply = refusal(RefusalKind::Flow { retry_after: asked.map(Duration::from_secs) }, 429);
        let life = live(Machine::new(URL_TTL), vec![("Send", Event::Replied(reply)), no_retry()]);
        let Some(Effect::Finish(Err(GatewayError::UpstreamThrottled { wait }))) = life.last() else {
            panic!("{}", show_life(&life))
        };
        assert_eq!(*wait, Duration::from_secs(expected));
    }
}

#[test]
fn an_early_answer_ends_the_call_before_the_gate() {
    let early = |reply| vec![("Open", Event::Opened(Ok(Open::Early(reply))))];
    check(early(refusal(RefusalKind::Order, 413)), "Open Book(refused) Finish(Upstream)");
    check(early(Reply::Failed(error_reply(500, "", Some("{}")))), "Open Book(failed) Finish(Upstream)");
    let mut lost = early(Reply::NotSent(upload()));
    lost.push(no_retry());
    check(lost, "Open Retry Book(released) Finish(UpstreamUnreachable)");
    check(early(Reply::Unknown(UnknownCause::Garbage)), "Open Book(unknown) Finish(UpstreamNonsense)");
    // A success for half an order may have been charged; it is no answer to ours.
    check(early(Reply::Answered(answer())), "Open Book(unknown) Finish(UpstreamNonsense)");
}

#[test]
fn only_a_granted_permit_lets_the_tail_go() {
    let marked = |permit| vec![("MarkSent", Event::Marked(permit))];
    check(marked(Ok(Permit::Frozen(Scope::Global))), "MarkSent Book(released) Finish(Frozen)");
    check(marked(Ok(Permit::Lost)), "MarkSent Finish(StillBeingMade)");
    check(marked(away()), "MarkSent Book(released) Finish(LedgerUnavailable)");
}

#[test]
fn answer_that_is_not_booked_is_kept_first_and_its_result_is_booked_at_once() {
    let not_answered = || ("Book(answered)", Event::Booked(away()));
    check(vec![not_answered()], &format!("Book(answered) {KEEPING}"));
    let not_stored = || ("Book(stored)", Event::Booked(away()));
    check(
        vec![not_answered(), not_stored(), not_stored()],
        "Book(answered) Fetch PutObject PutRecord Book(stored) Tell(Ok Bought) Book(stored) Pause Book(stored) \
         Finish(Ok Bought)",
    );
    check(
        vec![not_answered(), object_fails()],
        "Book(answered) Fetch PutObject Book(spooled) Finish(Ok Bought)",
    );
}

#[test]
fn answer_that_is_not_booked_is_offered_again_before_each_fetch() {
    let not_answered = || ("Book(answered)", Event::Booked(away()));
    let fails = |age| fetch_fails(transient(), age);
    check(
        vec![not_answered(), fails(1), not_answered(), fails(2)],
        &format!("Book(answered) Fetch Pause Book(answered) Fetch Pause Book(answered) {KEEPING}"),
    );
    // A result is given up only once the ledger has its answer.
    let ttl = URL_TTL.as_secs();
    check(
        vec![not_answered(), fails(ttl), fails(ttl)],
        "Book(answered) Fetch Pause Book(answered) Fetch Book(unfetchable) Finish(ResultNotFetched)",
    );
}

#[test]
fn who_waits_for_a_call_that_has_ended_does_not_wait_for_the_ledger() {
    let replied = |reply| ("Send", Event::Replied(reply));
    let flow = refusal(RefusalKind::Flow { retry_after: Some(Duration::from_secs(7)) }, 429);
    for (event, name, told) in [
        (replied(refusal(RefusalKind::Order, 400)), "Send Book(refused)", "Upstream"),
        (replied(Reply::Failed(error_reply(500, "", Some("{}")))), "Send Book(failed)", "Upstream"),
        (replied(Reply::Unknown(UnknownCause::Cut)), "Send Book(unknown)", "UpstreamUnreachable"),
        // The ledger has no other row for a retry either.
        (replied(flow), "Send Book(refused)", "UpstreamThrottled"),
        (replied(Reply::NotSent(upload())), "Send Book(released)", "UpstreamUnreachable"),
        (("MarkSent", Event::Marked(away())), "MarkSent Book(released)", "LedgerUnavailable"),
    ] {
        let again = || ("Book", Event::Booked(away()));
        let booking = name.split(' ').next_back().unwrap();
        check(
            vec![event, again(), again(), again()],
            &format!("{name} Tell({told}) {booking} Pause {booking} Pause {booking} Finish({told})"),
        );
    }
}

#[test]
fn a_fill_that_nobody_waits_for_by_the_time_its_row_is_won_sends_nothing() {
    let deserted = || ("CheckWaiters", Event::Awaited(false));
    check(vec![deserted()], "CheckWaiters Book(released) Stop");
    // Nobody is told, whoever may wait for the key by then.
    check(
        vec![deserted(), ("Book", Event::Booked(away()))],
        "CheckWaiters Book(released) Pause Book(released) Stop",
    );
    let awaited = ("CheckWaiters", Event::Awaited(true));
    check(
        vec![awaited, not_opened(connect()), deserted()],
        "CheckWaiters Open Retry CheckWaiters Book(released) Stop",
    );
}

#[test]
fn who_waits_for_a_kept_result_does_not_wait_for_the_ledger() {
    let script = || (0..3).map(|_| ("Book(stored)", Event::Booked(away())));
    check(
        script().collect(),
        "Book(stored) Tell(Ok Bought) Book(stored) Pause Book(stored) Pause Book(stored) Finish(Ok Bought)",
    );
    let other = ("PutRecord", Event::RecordKept(Ok(other_record(0))));
    check(
        std::iter::once(other).chain(script()).collect(),
        "PutRecord Book(stored) Tell(Ok Bought) Book(stored) Pause Book(stored) Pause Book(stored) \
         Import Finish(Ok Bought)",
    );
}

#[test]
fn a_paid_result_is_kept_even_when_the_ledger_contradicts_itself() {
    let life = live(Machine::new(URL_TTL), vec![("Book(answered)", Event::Booked(Err(contradiction())))]);
    assert_eq!(show_life(&life), format!("{BUYING} {KEEPING}"));
    check(vec![("Book(stored)", Event::Booked(Err(contradiction())))], "Book(stored) Finish(Ok Bought)");
    // What the spool refuses, for whatever reason, is kept nowhere yet, and nobody is told of it.
    let refused = || ("Book(spooled)", Event::Booked(Err(contradiction())));
    check(
        vec![object_fails(), refused(), object_fails(), refused()],
        &format!("{}PutObject PutRecord {KEPT}", "PutObject Book(spooled) Pause ".repeat(2)),
    );
}

/// A fetch that fails when the answer is so old.
fn fetch_fails(error: FetchError, seconds: u64) -> (&'static str, Event) {
    ("Fetch", Event::FetchEnded(Err(error), Duration::from_secs(seconds)))
}

fn dead() -> FetchError {
    FetchError::Dead("404".to_owned())
}

fn transient() -> FetchError {
    FetchError::Transient("planted".to_owned())
}

#[test]
fn a_result_is_fetched_five_times_in_the_foreground_and_then_in_the_background() {
    let fails = |times: u64| (0..times).map(|at| fetch_fails(transient(), at)).collect::<Vec<_>>();
    check(
        fails(4),
        "Fetch Pause Fetch Pause Fetch Pause Fetch Pause Fetch PutObject PutRecord Book(stored) Finish(Ok Bought)",
    );
    check(
        fails(7),
        "Fetch Pause Fetch Pause Fetch Pause Fetch Pause Fetch Tell(ResultNotFetched) Pause Fetch Pause \
         Fetch Pause Fetch PutObject PutRecord Book(stored) Finish(Ok Bought)",
    );
}

#[test]
fn who_is_told_that_a_result_was_not_fetched_is_told_whether_time_ran_out() {
    for (error, expected) in [(FetchError::Timeout, true), (transient(), false), (dead(), false)] {
        let fails = (0..5).map(|at| fetch_fails(error.clone(), at)).collect();
        let life = live(Machine::new(URL_TTL), fails);
        let told = life.iter().find_map(|effect| match effect {
            Effect::Tell(Err(GatewayError::ResultNotFetched { timed_out })) => Some(*timed_out),
            _ => None,
        });
        assert_eq!(told, Some(expected), "{error}");
    }
}

/// How a fill ends whose fetches fail at these ages of the answer.
fn end_after(fails: &[(FetchError, u64)]) -> String {
    let script = fails.iter().map(|(error, at)| fetch_fails(error.clone(), *at)).collect();
    let life = live(Machine::new(URL_TTL), script);
    show_life(&life[life.len() - 2..])
}

const KEPT: &str = "Book(stored) Finish(Ok Bought)";
const GIVEN_UP: &str = "Book(unfetchable) Finish(ResultNotFetched)";

#[test]
fn a_url_that_is_dead_for_fifteen_minutes_is_given_up() {
    assert_eq!(end_after(&[(dead(), 10), (dead(), 909)]), KEPT);
    assert_eq!(end_after(&[(dead(), 10), (dead(), 400), (dead(), 910)]), GIVEN_UP);
    // Only death in a row counts: anything else may mean that it lives again.
    for alive in [transient(), FetchError::Timeout, FetchError::NotAllowed("planted")] {
        assert_eq!(end_after(&[(dead(), 10), (alive.clone(), 400), (dead(), 910)]), KEPT, "{alive}");
        assert_eq!(end_after(&[(dead(), 10), (alive, 400), (dead(), 910), (dead(), 1810)]), GIVEN_UP);
    }
}

#[test]
fn a_result_that_is_not_had_while_its_url_may_live_is_given_up() {
    let ttl = URL_TTL.as_secs();
    for error in [transient(), FetchError::Timeout, FetchError::NotAllowed("planted"), dead()] {
        assert_eq!(end_after(&[(error.clone(), ttl - 1)]), KEPT, "{error}");
        assert_eq!(end_after(&[(error.clone(), ttl)]), GIVEN_UP, "{error}");
    }
    check(
        vec![fetch_fails(transient(), ttl), ("Book", Event::Booked(away()))],
        "Fetch Book(unfetchable) Tell(ResultNotFetched) Book(unfetchable) Finish(ResultNotFetched)",
    );
}

/// What the store does not take.
fn object_fails() -> (&'static str, Event) {
    ("PutObject", Event::ObjectKept(store_away(), now()))
}

fn record_fails() -> (&'static str, Event) {
    ("PutRecord", Event::RecordKept(store_away()))
}

#[test]
fn what_the_store_does_not_take_is_spooled_and_told_at_once() {
    const SPOOLED: &str = "Book(spooled) Finish(Ok Bought)";
    check(vec![object_fails()], &format!("PutObject {SPOOLED}"));
    check(vec![record_fails()], &format!("PutRecord {SPOOLED}"));
    for failure in [object_fails(), record_fails()] {
        let life = live(Machine::new(URL_TTL), vec![failure]);
        let [.., Effect::Book(id, Booking::Spooled { record, bytes }), Effect::Finish(Ok(filled))] =
            &life[..]
        else {
            panic!("{}", show_life(&life))
        };
        assert_eq!((*id, &**record, bytes), (WON.id, &bought_record(), &fetched().bytes));
        assert_eq!(*filled.record, bought_record());
    }
    let life = live(resumed(), vec![object_fails()]);
    assert_eq!(show_life(&life), format!("Fetch PutObject {SPOOLED}"));
}

#[test]
fn store_and_spool_are_asked_again_in_turns_for_ever() {
    let full = || ("Book(spooled)", Event::Booked(spool_full()));
    let is_away = || ("Book(spooled)", Event::Booked(away()));
    let script = (0..30).flat_map(|n| [object_fails(), if n % 2 == 0 { full() } else { is_away() }]);
    let script = script.chain((0..30).flat_map(|_| [record_fails(), full()])).collect();
    let expected = format!(
        "{}PutObject {}PutRecord {KEPT}",
        "PutObject Book(spooled) Pause ".repeat(30),
        "PutRecord Book(spooled) Pause ".repeat(30)
    );
    check(script, &expected);
    // Or the spool has room before the store is back.
    check(
        vec![object_fails(), full(), object_fails()],
        "PutObject Book(spooled) Pause PutObject Book(spooled) Finish(Ok Bought)",
    );
}

#[test]
fn a_result_that_comes_second_is_booked_on_its_own_row_and_the_first_is_imported() {
    let life = live(Machine::new(URL_TTL), vec![("PutRecord", Event::RecordKept(Ok(other_record(0))))]);
    assert_eq!(
        show_life(&life),
        format!("{BUYING} {KEEPING}").replace("Book(stored)", "Book(stored) Import")
    );
    let [.., Effect::Book(_, booking), Effect::Import(imported), Effect::Finish(Ok(filled))] = &life[..]
    else {
        panic!("{}", show_life(&life))
    };
    let Booking::Stored { record, holds_key } = booking else { panic!("{booking:?}") };
    assert_eq!((&**record, *holds_key), (&bought_record(), false));
    assert_eq!((&**imported, &*filled.record), (&other_record(0), &other_record(0)));
}

#[test]
fn a_record_written_before_a_crash_is_recognised_as_our_own() {
    let earlier = Record { stored_at: "2026-11-22T09:00:00Z".parse().unwrap(), ..bought_record() };
    let life = live(resumed(), vec![("PutRecord", Event::RecordKept(Ok(earlier.clone())))]);
    let [.., Effect::Book(_, booking), Effect::Finish(Ok(filled))] = &life[..] else {
        panic!("{}", show_life(&life))
    };
    let Booking::Stored { record, holds_key } = booking else { panic!("{booking:?}") };
    assert_eq!((&**record, *holds_key, &*filled.record), (&earlier, true, &earlier));
}

/// What is left to do for an answer that a dead process booked.
fn resumed() -> Machine {
    let call = UnfinishedCall {
        id: WON.id,
        reservation: reservation(),
        generation: WON.generation,
        text: answer().text().clone(),
        answered_at: now(),
    };
    Machine::resume(URL_TTL, call, answer())
}

#[test]
fn a_resumed_fill_only_fetches_and_keeps() {
    let life = live(resumed(), Vec::new());
    assert_eq!(show_life(&life), KEEPING);
    let Some(Effect::Book(id, Booking::Stored { record, .. })) = life.get(3) else { panic!("{life:?}") };
    assert_eq!((*id, &**record), (WON.id, &bought_record()));
    let ttl = URL_TTL.as_secs();
    let life = live(resumed(), vec![fetch_fails(transient(), ttl)]);
    assert_eq!(show_life(&life), format!("Fetch {GIVEN_UP}"));
}

#[test]
fn pauses_double_up_to_a_minute_and_a_held_key_is_looked_at_four_times_a_second() {
    let pauses = |script: Script| -> Vec<u128> {
        let life = live(Machine::new(URL_TTL), script);
        let millis = |effect: &Effect| match effect {
            Effect::Pause(time) | Effect::StepAside(time) => Some(time.as_millis()),
            _ => None,
        };
        life.iter().filter_map(millis).collect()
    };
    let doubling = [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000];
    let nowhere = (0..11).flat_map(|_| [object_fails(), ("Book(spooled)", Event::Booked(spool_full()))]);
    assert_eq!(pauses(nowhere.collect()), doubling);
    // The record begins anew.
    let full = || ("Book(spooled)", Event::Booked(spool_full()));
    assert_eq!(
        pauses(vec![object_fails(), full(), object_fails(), full(), record_fails(), full()]),
        [200, 400, 200]
    );
    // The first failure is told to the waiters, and followed by no pause.
    let not_stored = (0..12).map(|_| ("Book(stored)", Event::Booked(away())));
    assert_eq!(pauses(not_stored.collect())[..10], doubling[1..]);
    assert_eq!(pauses(vec![("Reserve", Event::Reserved(Ok(Reserved::Held(CallId(1)))))]), [250]);
}

#[test]
fn an_event_out_of_order_is_a_bug_and_buys_nothing() {
    for event in [
        Event::Booked(Ok(())),
        Event::Booked(away()),
        Event::ObjectKept(Ok(()), now()),
        Event::RecordKept(Ok(other_record(0))),
        Event::Done,
    ] {
        let effect = Machine::new(URL_TTL).step(event);
        assert_eq!(show(&effect), "Finish(Bug)");
    }
}
