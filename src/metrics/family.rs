//! Kinds of families, and the macro of [`super::families`]. A family whose labels are closed sets is an
//! [`Each`]: all its series exist from the start, at zero, and are found by position.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Index;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry,
};

use super::labels::Labels;

pub(crate) struct Spec<'a> {
    pub(super) registry: &'a Registry,
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) buckets: &'static [f64],
}

impl Spec<'_> {
    fn vector<M: Kind>(&self) -> M::Vector {
        let vector = M::vector(self).expect("names and labels of families are well-formed");
        self.registry.register(Box::new(vector.clone())).expect("names of families are unique");
        vector
    }
}

pub(crate) trait Family {
    /// With its zero values.
    fn declare(spec: &Spec<'_>) -> Self;

    fn add_team(&self, _team: &str) {}
}

pub(crate) trait Kind {
    type Vector: Collector + Clone + 'static;

    fn vector(spec: &Spec<'_>) -> prometheus::Result<Self::Vector>;

    fn series(vector: &Self::Vector, values: &[&str]) -> Self;
}

macro_rules! kinds {
    ($($series:ty: $vector:ty = |$spec:ident| $options:expr;)+) => {$(
        impl Kind for $series {
            type Vector = $vector;

            fn vector($spec: &Spec<'_>) -> prometheus::Result<$vector> {
                <$vector>::new($options, $spec.labels)
            }

            fn series(vector: &$vector, values: &[&str]) -> Self {
                vector.with_label_values(values)
            }
        }

        impl Family for $series {
            fn declare(spec: &Spec<'_>) -> Self {
                Self::series(&spec.vector::<Self>(), &[])
            }
        }
    )+};
}

kinds! {
    IntCounter: IntCounterVec = |spec| Opts::new(spec.name, spec.help);
    IntGauge: IntGaugeVec = |spec| Opts::new(spec.name, spec.help);
    Counter: CounterVec = |spec| Opts::new(spec.name, spec.help);
    Gauge: GaugeVec = |spec| Opts::new(spec.name, spec.help);
    Histogram: HistogramVec = |spec| HistogramOpts::new(spec.name, spec.help).buckets(spec.buckets.to_vec());
}

pub(crate) struct Each<S, M> {
    all: Vec<M>,
    by: PhantomData<fn(S)>,
}

impl<S: Labels, M: Kind> Family for Each<S, M> {
    fn declare(spec: &Spec<'_>) -> Self {
        let vector = spec.vector::<M>();
        let all = S::all().into_iter().map(|labels| M::series(&vector, &labels.words())).collect();
        Self { all, by: PhantomData }
    }
}

impl<S: Labels, M> Index<S> for Each<S, M> {
    type Output = M;

    fn index(&self, labels: S) -> &M {
        &self.all[labels.position()]
    }
}

/// Counters by team, the first label, and by closed sets.
pub(crate) struct ByTeam<S> {
    vector: IntCounterVec,
    by: PhantomData<fn(S)>,
}

impl<S: Labels> ByTeam<S> {
    /// `team` is its [label](super::Metrics::team_label).
    pub(super) fn of(&self, team: &str, labels: S) -> IntCounter {
        let values: Vec<&str> = [team].into_iter().chain(labels.words()).collect();
        self.vector.with_label_values(&values)
    }
}

impl<S: Labels> Family for ByTeam<S> {
    fn declare(spec: &Spec<'_>) -> Self {
        Self { vector: spec.vector::<IntCounter>(), by: PhantomData }
    }

    fn add_team(&self, team: &str) {
        S::all().into_iter().for_each(|labels| drop(self.of(team, labels)));
    }
}

impl Family for IntCounterVec {
    fn declare(spec: &Spec<'_>) -> Self {
        spec.vector::<IntCounter>()
    }
}

/// A counter of what another module has counted.
pub(crate) struct Total(Mutex<Counter>);

impl Total {
    /// Concurrent scrapes do not add the same twice.
    pub(crate) fn raise_to(&self, total: f64) {
        let counter = self.0.lock();
        counter.inc_by((total - counter.get()).max(0.0));
    }
}

impl Family for Total {
    fn declare(spec: &Spec<'_>) -> Self {
        Self(Mutex::new(Counter::declare(spec)))
    }
}

/// Gauges whose series are exactly those of the last [`set`](Self::set).
pub(crate) struct Rows {
    vector: IntGaugeVec,
    present: Mutex<Vec<Vec<String>>>,
}

impl Rows {
    pub(super) fn set(&self, rows: BTreeMap<Vec<String>, i64>) {
        let mut present = self.present.lock();
        for gone in present.iter().filter(|labels| !rows.contains_key(*labels)) {
            // A missing series counts as removed.
            let _ = self.vector.remove_label_values(gone);
        }
        for (labels, value) in &rows {
            self.vector.with_label_values(labels).set(*value);
        }
        *present = rows.into_keys().collect();
    }
}

impl Family for Rows {
    fn declare(spec: &Spec<'_>) -> Self {
        Self { vector: spec.vector::<IntGauge>(), present: Mutex::default() }
    }
}

/// A field's name is the family's without `granary_`, its doc comment the help text; label names stand in
/// brackets, and a histogram's buckets behind `=`.
macro_rules! families {
    (@buckets) => { &[] };
    (@buckets $buckets:expr) => { &$buckets };
    ($(#[$about:meta])* $visible:vis struct $name:ident {
        $($(#[doc = $help:literal])+ $field:ident: $kind:ty $([$($label:literal),+])? $(= $buckets:expr)?,)+
    }) => {
        $(#[$about])*
        $visible struct $name {
            $($(#[doc = $help])+ pub(crate) $field: $kind,)+
        }

        impl $name {
            pub(super) fn declare(registry: &::prometheus::Registry) -> Self {
                Self {
                    $($field: $crate::metrics::family::Family::declare(&$crate::metrics::family::Spec {
                        registry,
                        name: concat!("granary_", stringify!($field)),
                        help: concat!($($help),+).trim_ascii(),
                        labels: &[$($($label),+)?],
                        buckets: families!(@buckets $($buckets)?),
                    }),)+
                }
            }

            pub(super) fn add_team(&self, team: &str) {
                $($crate::metrics::family::Family::add_team(&self.$field, team);)+
            }
        }
    };
}
pub(super) use families;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_those_of_the_last_set() {
        let registry = Registry::new();
        let spec = Spec { registry: &registry, name: "a_b", help: "help", labels: &["a", "b"], buckets: &[] };
        let rows = Rows::declare(&spec);
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
