//! How families are made, and how their series are found again.
//!
//! A label whose values are a closed set is a [`Label`], and its series are [`Each`]: all there from the
//! start, at zero, and found by position, which costs a request nothing. Gauges whose series come and
//! go with the configuration are [`Rows`].

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::{Mutex, PoisonError};

use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

use super::labels::Label;

/// Makes families; a name that is taken or malformed is a mistake in these files.
pub(super) struct Families<'a>(pub(super) &'a Registry);

impl Families<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, family: prometheus::Result<C>) -> C {
        let family = family.expect("names and labels of families are well-formed");
        self.0.register(Box::new(family.clone())).expect("names of families are unique");
        family
    }

    pub(super) fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn plain(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    pub(super) fn float(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    pub(super) fn count(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub(super) fn float_count(&self, name: &str, help: &str) -> Counter {
        self.add(Counter::new(name, help))
    }

    pub(super) fn histogram(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    /// A counter for each value of a closed set.
    pub(super) fn counters<L: Label>(&self, name: &str, help: &str, label: &str) -> Each<L, IntCounter> {
        let family = self.counter(name, help, &[label]);
        Each::new(|value: L| family.with_label_values(&[value.as_str()]))
    }

    /// A counter for each pair of two closed sets.
    pub(super) fn counter_pairs<A: Label, B: Label>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; 2],
    ) -> Each<A, Each<B, IntCounter>> {
        let family = self.counter(name, help, &labels);
        Each::new(|a: A| Each::new(|b: B| family.with_label_values(&[a.as_str(), b.as_str()])))
    }

    /// A gauge for each value of a closed set.
    pub(super) fn gauges<L: Label>(&self, name: &str, help: &str, label: &str) -> Each<L, IntGauge> {
        let family = self.gauge(name, help, &[label]);
        Each::new(|value: L| family.with_label_values(&[value.as_str()]))
    }

    /// A histogram for each value of a closed set.
    pub(super) fn histograms<L: Label>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        buckets: &[f64],
    ) -> Each<L, Histogram> {
        let family = self.histogram(name, help, &[label], buckets);
        Each::new(|value: L| family.with_label_values(&[value.as_str()]))
    }

    /// A gauge whose series come and go.
    pub(super) fn rows(&self, name: &str, help: &str, labels: &[&str]) -> Rows {
        Rows { family: self.gauge(name, help, labels), present: Mutex::default() }
    }
}

/// One thing for each value of a closed set.
pub(super) struct Each<L, M> {
    all: Vec<M>,
    by: PhantomData<fn(L)>,
}

impl<L: Label, M> Each<L, M> {
    pub(super) fn new(make: impl Fn(L) -> M) -> Self {
        Self { all: L::ALL.iter().map(|value| make(*value)).collect(), by: PhantomData }
    }
}

impl<L: Label, M> Index<L> for Each<L, M> {
    type Output = M;

    fn index(&self, value: L) -> &M {
        &self.all[value.position()]
    }
}

/// Label values of one series, in the order of the labels.
pub(super) type RowLabels = Vec<String>;

/// Gauges whose series are exactly those that were given last.
pub(super) struct Rows {
    family: IntGaugeVec,
    present: Mutex<Vec<RowLabels>>,
}

impl Rows {
    pub(super) fn set(&self, rows: BTreeMap<RowLabels, i64>) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in present.iter().filter(|labels| !rows.contains_key(*labels)) {
            // A series that is not there is as good as removed.
            let _ = self.family.remove_label_values(gone);
        }
        for (labels, value) in &rows {
            self.family.with_label_values(labels).set(*value);
        }
        *present = rows.into_keys().collect();
    }
}

/// What a gauge can hold of a number.
pub(super) fn gauge_value(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_those_that_were_given_last_and_no_others() {
        let registry = Registry::new();
        let rows = Families(&registry).rows("a_b", "help", &["a", "b"]);
        let set = |names: &[(&str, i64)]| {
            let row = |(name, value): &(&str, i64)| (vec![(*name).to_owned(), "x".to_owned()], *value);
            rows.set(names.iter().map(row).collect());
            let mut seen: Vec<_> = registry
                .gather()
                .iter()
                .flat_map(|family| family.get_metric())
                .map(|metric| {
                    (metric.get_label()[0].value().to_owned(), metric.get_gauge().get_value() as i64)
                })
                .collect();
            seen.sort();
            seen
        };
        assert_eq!(set(&[("p", 1), ("q", 2)]), [("p".to_owned(), 1), ("q".to_owned(), 2)]);
        assert_eq!(set(&[("q", 3), ("r", 4)]), [("q".to_owned(), 3), ("r".to_owned(), 4)]);
        assert_eq!(set(&[]), []);
    }
}
