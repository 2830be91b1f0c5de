//! What goes wrong on purpose, and what was counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

/// What a request asks for, by its method and query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// `PUT`
    Put,
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `DELETE`
    Delete,
    /// `GET` of a list of names
    List,
    /// Anything else.
    Other,
}

impl Operation {
    pub(super) fn of(method: &http::Method, query: Option<&str>) -> Self {
        match method.as_str() {
            "GET" if query.is_some_and(|query| query.contains("list-type=2")) => Self::List,
            "PUT" => Self::Put,
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "DELETE" => Self::Delete,
            _ => Self::Other,
        }
    }
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 503 `SlowDown`; nothing is done.
    SlowDown,
    /// 403 `AccessDenied`; nothing is done.
    Forbidden,
    /// 409 `ConditionalRequestConflict`; nothing is done.
    Conflict,
    /// 507 `XMinioStorageFull`; nothing is done.
    Full,
    /// 404 with a page that is not S3's; nothing is done.
    NotFoundPage,
    /// Never answered; nothing is done.
    Hang,
    /// Everything is done, and the connection dropped in place of the answer.
    DropAnswer,
    /// Everything is done; the answer breaks off half way through its body.
    CutBody,
    /// Everything is done; the answer stands still half way through its body.
    StallBody,
}

/// What is still to go wrong, and what has been seen.
#[derive(Default)]
pub(super) struct Script(Mutex<Book>);

#[derive(Default)]
struct Book {
    next: VecDeque<(Option<Operation>, Fault)>,
    always: Option<(Option<Operation>, Fault)>,
    seen: BTreeMap<Operation, u64>,
}

impl Script {
    /// Counts a request whose head has arrived, and says what goes wrong with it.
    pub(super) fn request(&self, operation: Operation) -> Option<Fault> {
        let mut book = self.book();
        *book.seen.entry(operation).or_default() += 1;
        let concerns = |only: &Option<Operation>| only.is_none_or(|only| only == operation);
        match book.next.iter().position(|(only, _)| concerns(only)) {
            Some(at) => book.next.remove(at).map(|(_, fault)| fault),
            None => book.always.filter(|(only, _)| concerns(only)).map(|(_, fault)| fault),
        }
    }

    pub(super) fn next(&self, count: usize, only: Option<Operation>, fault: Fault) {
        self.book().next.extend(std::iter::repeat_n((only, fault), count));
    }

    pub(super) fn always(&self, fault: Option<(Option<Operation>, Fault)>) {
        self.book().always = fault;
    }

    pub(super) fn seen(&self, operation: Operation) -> u64 {
        self.book().seen.get(&operation).copied().unwrap_or_default()
    }

    pub(super) fn all_seen(&self) -> u64 {
        self.book().seen.values().sum()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap()
    }
}
