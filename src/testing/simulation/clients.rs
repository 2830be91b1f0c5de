//! Who asks: a few teams with all kinds of limits, a few pictures, and clients who may hang up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use granary_kit::dice::Dice;
use granary_kit::form::Form;
use http::HeaderMap;
use tokio::time::Instant;

use super::NAMESPACE;
use super::faults::ms;
use super::process::Process;
use super::world::World;
use crate::base::identity::Identity;
use crate::base::key::CacheKey;
use crate::base::operation::{IMAGE_CROPPING, Offer};
use crate::base::permits::Party;
use crate::base::picture::ObjectName;
use crate::error::GatewayError;
use crate::gateway::{Caller, CropReply, RequestTiming};
use crate::request::body::{ClientBody, Pace};
use crate::request::{self, RequestLimits};
use crate::teams::policy::PolicyConfig;
use crate::teams::{BudgetMode, Team};
use crate::upstream::download::{FetchError, Fetched};

/// What a call costs.
pub(super) const CREDITS: u64 = 3;
/// Where clients reach every process.
pub(super) const ROOT: &str = "https://granary.example";
/// When every client is answered.
const ANSWER_WITHIN: Duration = Duration::from_secs(28);
/// Pictures there are.
const PICTURES: u8 = 4;

/// The teams of a world, its pictures, and its limits.
pub(super) struct Teams {
    pub(super) all: Vec<Arc<Team>>,
    pub(super) daily_credits: u64,
    pub(super) monthly_credits: u64,
    /// Paid calls at once in each process.
    pub(super) concurrency: usize,
    pictures: Vec<Picture>,
    /// How many of them anybody asks for.
    in_use: u64,
}

/// A picture and the form it is sent in.
struct Picture {
    name: String,
    key: CacheKey,
    content_type: String,
    body: Bytes,
}

impl Teams {
    pub(super) fn draw(dice: &mut Dice) -> Self {
        let mut credits = |calls: &[u64]| CREDITS * calls[dice.below(calls.len() as u64) as usize];
        let team = |name: &str| Team { name: name.to_owned(), may_refresh: false, ..Team::local() };
        let all = [
            Team { may_refresh: true, ..team("rich") },
            Team { daily_credits: Some(credits(&[1, 3, 8])), ..team("poor") },
            Team { monthly_credits: Some(credits(&[0, 2])), ..team("broke") },
            Team { daily_credits: Some(CREDITS), mode: BudgetMode::Shadow, ..team("shadow") },
            Team { misses_per_second: Some(0.2), may_refresh: true, ..team("hasty") },
        ];
        Self {
            all: all.map(Arc::new).to_vec(),
            daily_credits: credits(&[5, 20, 1000]),
            monthly_credits: credits(&[12, 1000]),
            concurrency: dice.below(4) as usize + 1,
            in_use: [1, 2, 4][dice.below(3) as usize],
            pictures: (0..PICTURES).map(Picture::new).collect(),
        }
    }

    /// The policy of its processes.
    pub(super) fn terms(&self) -> PolicyConfig {
        PolicyConfig {
            teams: crate::teams::Teams::new(self.all.iter().map(|team| ((**team).clone(), Vec::new()))),
            daily_credits: Some(self.daily_credits),
            monthly_credits: Some(self.monthly_credits),
            origins: Vec::new(),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.all.iter().map(|team| team.name.as_str())
    }

    pub(super) fn keys(&self) -> Vec<CacheKey> {
        self.pictures.iter().map(|picture| picture.key).collect()
    }

    /// The word for a key in a trace.
    pub(super) fn name_of(&self, key: CacheKey) -> String {
        let found = self.pictures.iter().find(|picture| picture.key == key);
        found.map_or_else(|| key.to_string(), |picture| picture.name.clone())
    }

    /// What a scope may spend in a day or a month, where that is enforced.
    pub(super) fn limit(&self, scope: &str, is_day: bool) -> Option<u64> {
        if scope == "global" {
            return Some(if is_day { self.daily_credits } else { self.monthly_credits });
        }
        let team = self.all.iter().find(|team| scope.strip_prefix("team:") == Some(&team.name))?;
        let limit = if is_day { team.daily_credits } else { team.monthly_credits };
        limit.filter(|_| team.mode == BudgetMode::Enforce)
    }
}

impl Picture {
    fn new(number: u8) -> Self {
        let header = b"\x89PNG\r\n\x1a\n\0\0\0\x0DIHDR\0\0\0\x20\0\0\0\x20\x08\x02\0\0\0";
        let image = [&header[..], &[number]].concat();
        let key = CacheKey::of(&image, 400, 300);
        let form = Form::crop(image, 400, 300);
        let content_type = form.content_type();
        Self { name: format!("k{number}"), key, content_type, body: form.into_bytes().into() }
    }
}

/// Result bytes, as a download gives them.
pub(super) fn fetched(bytes: Bytes) -> Result<Fetched, FetchError> {
    let name = ObjectName::of(&bytes).ok_or_else(|| FetchError::Dead("no picture".to_owned()))?;
    Ok(Fetched { name, bytes })
}

/// What a client wants.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) team: Arc<Team>,
    pub(super) picture: usize,
    pub(super) refresh: bool,
    pub(super) only_if_cached: bool,
    /// When it hangs up, if it does.
    pub(super) patience: Option<Duration>,
}

/// How a request ended: its cache status, or the name of its error.
fn ended(outcome: &Result<CropReply, GatewayError>) -> String {
    match outcome {
        Ok(reply) => reply.status.as_str().to_owned(),
        Err(error) => format!("{error:?}").chars().take_while(char::is_ascii_alphanumeric).collect(),
    }
}

impl World {
    pub(super) fn draw_ask(&self) -> Ask {
        let team = self.teams.all[self.below(self.teams.all.len() as u64) as usize].clone();
        Ask {
            refresh: self.chance(if team.may_refresh { 1000 } else { 100 }),
            team,
            picture: self.below(self.teams.in_use) as usize,
            only_if_cached: self.chance(300),
            patience: self.chance(2000).then(|| self.between(0, 8000)),
        }
    }

    /// Sends a client to a process. It waits on its own.
    pub(super) fn send_client(self: &Arc<Self>, process: Arc<Process>, ask: Ask) {
        self.state().clients += 1;
        process.clients.fetch_add(1, Ordering::Relaxed);
        let world = self.clone();
        tokio::spawn(async move {
            let goes_on = world.be_client(&process, &ask).await;
            process.clients.fetch_sub(1, Ordering::Relaxed);
            if let Some(wait) = goes_on {
                tokio::time::sleep(wait).await;
                if let Some(process) = world.any_process() {
                    world.count("clients who ask again");
                    world.send_client(process, ask);
                }
            }
            world.state().clients -= 1;
        });
    }

    /// Asks once; returns when to ask again, if at all.
    async fn be_client(&self, process: &Process, ask: &Ask) -> Option<Duration> {
        let picture = &self.teams.pictures[ask.picture];
        let about = format!("{} asks {} for {}", ask.team.name, process.life.name(), picture.name);
        self.note(|| format!("{about}, refresh: {}, cached only: {}", ask.refresh, ask.only_if_cached));
        let hang_up = async {
            match ask.patience {
                Some(patience) => tokio::time::sleep(patience).await,
                None => std::future::pending().await,
            }
        };
        let asked = tokio::time::timeout(ANSWER_WITHIN + ms(100), handle(process, picture, ask));
        let outcome = tokio::select! {
            biased;
            () = process.life.dead.cancelled() => {
                self.count("clients whose process died");
                return self.strikes(5000).then(|| self.between(0, 3000));
            }
            () = hang_up => {
                self.count("clients who hung up");
                return self.strikes(3000).then(|| self.between(0, 3000));
            }
            outcome = asked => outcome,
        };
        let Ok(outcome) = outcome else {
            self.violate(format!("{about}, and has no answer after 28 s"));
            return None;
        };
        self.note(|| format!("{about}: {}", ended(&outcome)));
        self.count(&format!("told: {}", ended(&outcome)));
        self.was_answered(picture.key, &outcome);
        self.check();
        (outcome.is_err() && self.strikes(5000)).then(|| self.between(200, 70_000))
    }

    /// Looks a key up, hash first.
    pub(super) fn send_look_up(self: &Arc<Self>, process: Arc<Process>, key: CacheKey) {
        let world = self.clone();
        tokio::spawn(async move {
            let mut trail = RequestTiming::default();
            let was_permanent = world.is_permanent(key, 0);
            let (identity, team) = (Identity::new(NAMESPACE, key), Team::local());
            let outcome = tokio::select! {
                biased;
                () = process.life.dead.cancelled() => return,
                outcome = process.gateway.look_up_key(&team, &identity, &mut trail) => outcome,
            };
            world.count(&format!("looked up: {}", ended(&outcome)));
            let is_absent = matches!(outcome, Err(GatewayError::KeyNotFound));
            let is_excused =
                process.life.could_not_ask(tokio::task::try_id()) && world.cannot_know(&process.life, key);
            if is_absent && was_permanent && !is_excused && world.is_permanent(key, 0) {
                let (name, process) = (world.teams.name_of(key), process.life.name());
                world.violate(format!("{name} is permanent, and {process} says that it is absent"));
            }
            world.was_answered(key, &outcome);
        });
    }

    /// Reads a permanent URL.
    pub(super) fn send_reader(self: &Arc<Self>, process: Arc<Process>, object: ObjectName) {
        let world = self.clone();
        let waits_elsewhere = self.waits_elsewhere(object, process.life.ledger);
        tokio::spawn(async move {
            let client = Party::new("client");
            let read = tokio::select! {
                biased;
                () = process.life.dead.cancelled() => return,
                read = process.gateway.result(object, &client) => read,
            };
            world.count(if read.is_ok() { "URLs read" } else { "URLs not to be read now" });
            world.was_read(object, waits_elsewhere, &read);
        });
    }

    /// At the end: whatever is permanent is a hit, for everyone, and costs nothing.
    pub(super) async fn check_hits(&self, process: &Process) {
        for (number, picture) in self.teams.pictures.iter().enumerate() {
            let record = self.store.record(super::NAMESPACE, picture.key).ok().flatten();
            let object = record.and_then(|record| record.object());
            let is_permanent = object.is_some_and(|object| self.store.has_object(object));
            let ask = Ask {
                team: self.teams.all[2].clone(),
                picture: number,
                refresh: false,
                only_if_cached: true,
                patience: None,
            };
            let outcome = handle(process, picture, &ask).await;
            self.was_answered(picture.key, &outcome);
            if is_permanent && outcome.is_err() {
                let how = ended(&outcome);
                self.violate(format!(
                    "{} is permanent, and {} says {how}",
                    picture.name,
                    process.life.name()
                ));
            }
        }
        let told: Vec<String> = self.state().archive.standing().map(|(_, url, _)| url.to_owned()).collect();
        for url in told {
            let Some(object) = url.strip_prefix("results/").and_then(ObjectName::parse) else {
                return self.violate(format!("{url} is no permanent URL"));
            };
            let read = process.gateway.result(object, &Party::new("client")).await;
            self.was_read(object, false, &read);
            if read.is_err() {
                self.violate(format!("{url} was told and cannot be read, though nothing is wrong any more"));
            }
        }
    }
}

async fn handle(process: &Process, picture: &Picture, ask: &Ask) -> Result<CropReply, GatewayError> {
    let mut headers = HeaderMap::new();
    let content_type = picture.content_type.parse().expect("a header's value");
    headers.insert(http::header::CONTENT_TYPE, content_type);
    let head = request::check_head(&IMAGE_CROPPING, &headers, &RequestLimits::default())
        .map_err(|error| GatewayError::Request(error.into()))?;
    let caller = Caller {
        team: ask.team.clone(),
        refresh: ask.refresh,
        only_if_cached: ask.only_if_cached,
        deadline: Instant::now() + ANSWER_WITHIN,
    };
    let body = ClientBody::new(http_body_util::Full::new(picture.body.clone()), Pace::of_tests());
    let offer = Offer { operation: &IMAGE_CROPPING, namespace: NAMESPACE.into(), credits: CREDITS };
    process.gateway.handle(&offer, &caller, head, body, &mut RequestTiming::default()).await
}
