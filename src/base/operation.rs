//! What is sold: an endpoint of the upstream, as a value ([`Operation`]).
//!
//! The upstream has some ninety operations that share its key, its envelope and its expiring URLs.
//! What distinguishes one from another is in its value alone: a second operation is a second value
//! and a place in [`OPERATIONS`].

use std::sync::Arc;

use crate::base::identity::Identity;
use crate::base::key::CacheKey;

/// One operation of the upstream's API.
#[derive(Debug)]
pub struct Operation {
    /// The path below the upstream's origin, and below ours.
    pub path: &'static str,
    /// Its part of the namespace. Cropping has none: its names are older than the second operation.
    pub segment: Option<&'static str>,
    /// The names of the form's fields: the picture, and two numbers. The key is made of their values, in
    /// this order.
    pub fields: [&'static str; 3],
    /// The members of the answer that lead to the result's URL.
    pub result_url: [&'static str; 2],
    /// Credits of a call, unless the configuration says otherwise.
    pub credits: u64,
    /// The name of its credit pool in the upstream's `query-credits` answer.
    pub credit_pool: &'static str,
    /// The vendor's name of it.
    pub title: &'static str,
}

/// *AI image cropping*.
pub static IMAGE_CROPPING: Operation = Operation {
    path: "/api/image/editing/image-cropping",
    segment: None,
    fields: ["image", "width", "height"],
    result_url: ["data", "url"],
    credits: 3,
    credit_pool: "image_cropping",
    title: "AI Image Cropping",
};

/// A second operation, so that tests can prove that two share nothing.
#[cfg(feature = "crash-points")]
pub static SECOND: Operation =
    Operation { path: "/api/image/editing/second", segment: Some("second"), ..IMAGE_CROPPING };

/// All operations that are served; the first is cropping.
pub static OPERATIONS: &[&Operation] = &[
    &IMAGE_CROPPING,
    #[cfg(feature = "crash-points")]
    &SECOND,
];

/// The upstream's free call that says what is left to spend.
pub const QUERY_CREDITS_PATH: &str = "/api/common/query-credits";

/// Separates an operation's segment from the upstream's namespace, which cannot contain it.
const SEPARATOR: char = '.';

impl Operation {
    /// The operation whose results are in a namespace, if it is served.
    pub fn of_namespace(namespace: &str) -> Option<&'static Self> {
        let segment = namespace.split_once(SEPARATOR).map(|(_, segment)| segment);
        OPERATIONS.iter().find(|operation| operation.segment == segment).copied()
    }

    /// The namespace of its results: that of the upstream, with its segment.
    pub fn namespace(&self, upstream: &str) -> Arc<str> {
        match self.segment {
            None => upstream.into(),
            Some(segment) => format!("{upstream}{SEPARATOR}{segment}").into(),
        }
    }
}

/// An operation as this process offers it.
#[derive(Clone, Debug)]
pub struct Offer {
    /// What is offered.
    pub operation: &'static Operation,
    /// Namespace of its results.
    pub namespace: Arc<str>,
    /// Credits of a call.
    pub credits: u64,
}

impl Offer {
    /// All operations over one upstream. `cropping_credits`: what is configured for a crop.
    pub fn all(upstream_namespace: &str, cropping_credits: u64) -> Vec<Self> {
        let offer = |operation: &&'static Operation| Self {
            operation,
            namespace: operation.namespace(upstream_namespace),
            credits: if operation.segment.is_none() { cropping_credits } else { operation.credits },
        };
        OPERATIONS.iter().map(offer).collect()
    }

    /// The identity of what is under one of its keys.
    pub fn identity(&self, key: CacheKey) -> Identity {
        Identity { namespace: self.namespace.clone(), key }
    }
}
