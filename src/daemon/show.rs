//! Publishes the picture of the run after each step, for everyone who looks at it.

use std::sync::Arc;

use tokio::sync::watch;

use super::tick::{Observer, StepFacts};
use crate::config::Config;
use crate::control::{Controller, Settings};
use crate::export::Latest;
use crate::holdout::Savings;
use crate::view::{About, View};

/// Keeps a [`View`] and publishes its state. Whoever reads it never holds up the loop: the latest state is swapped in.
pub struct Show {
    view: View,
    publish: watch::Sender<Arc<crate::view::State>>,
    publish_history: watch::Sender<Arc<crate::view::History>>,
}

impl Show {
    /// Publishes a view; also where to read it.
    pub fn new(view: View) -> (Self, Latest) {
        let (publish, state) = watch::channel(Arc::new(view.state().clone()));
        let (publish_history, history) = watch::channel(Arc::new(view.history().clone()));
        (Self { view, publish, publish_history }, Latest { state, history })
    }
}

/// What a configuration says about the server of this name.
pub fn about(name: &str, config: &Config, settings: &Settings) -> About {
    About {
        name: name.to_owned(),
        policy: config.control.policy.to_string(),
        objective: config.control.objective.to_string(),
        limits: settings.limits,
    }
}

impl Observer for Show {
    fn step(&mut self, facts: &StepFacts<'_>) {
        let grown = self.view.step(facts);
        self.publish.send_replace(Arc::new(self.view.state().clone()));
        if grown {
            self.publish_history.send_replace(Arc::new(self.view.history().clone()));
        }
    }

    fn reconfigured(&mut self, config: &Config, settings: &Settings) {
        let about = about(&self.view.state().name, config, settings);
        self.view.reconfigured(about);
    }

    fn end(&mut self, _controller: &Controller, _: &Savings) {
        self.view.end();
        self.publish.send_replace(Arc::new(self.view.state().clone()));
    }
}
