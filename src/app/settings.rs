//! The configuration of each part, at the start and at a reload.

use axum::http::HeaderValue;

use crate::base::operation::Offer;
use crate::config::Config;
use crate::fill::FillConfig;
use crate::fill::slots::SlotsConfig;
use crate::teams::policy::PolicyConfig;

pub(super) fn fill_config(config: &Config) -> FillConfig {
    FillConfig {
        least_credits: offers(config).iter().map(|offer| offer.credits).min().unwrap_or(0),
        slots: slots_config(config),
        result_url_ttl: config.upstream.result_url_ttl,
        hard_stop: config.upstream.hard_stop,
    }
}

pub(super) fn offers(config: &Config) -> Vec<Offer> {
    Offer::all(&config.upstream.namespace, config.upstream.credits_per_call)
}

pub(super) fn slots_config(config: &Config) -> SlotsConfig {
    SlotsConfig {
        concurrency: config.upstream.concurrency,
        max_concurrency: config.upstream.max_concurrency,
        queue: config.upstream.queue,
    }
}

pub(super) fn policy_config(config: &Config) -> PolicyConfig {
    let origins = config.server.cors_origins.iter();
    PolicyConfig {
        teams: config.to_teams(),
        daily_credits: config.budget.daily_credits,
        monthly_credits: config.budget.monthly_credits,
        origins: origins.filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok()).collect(),
    }
}
