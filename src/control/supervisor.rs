//! The supervisor: starts the routes of a plan and drains them. One owner of all that runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::plan::Plan;
use super::route::{RunningRoute, Shared};
use super::status::{RouteFacts, RoutePhase, RouteReport, StatusBoard};
use crate::kafka::{Cluster, Instance};
use crate::model::RouteName;
use crate::pipeline::worker::Order;
use crate::telemetry::Metrics;

/// All routes of the process.
pub struct Supervisor {
    shared: Shared,
    routes: BTreeMap<RouteName, RunningRoute>,
    /// Keep the disabled routes on the board.
    disabled: Vec<RouteReport>,
}

impl Supervisor {
    /// Nothing runs yet.
    pub fn new(cluster: Cluster, instance: Instance, metrics: Metrics, board: Arc<StatusBoard>) -> Self {
        Self {
            shared: Shared { cluster, instance: Arc::new(instance), metrics, board },
            routes: BTreeMap::new(),
            disabled: Vec::new(),
        }
    }

    /// Starts every route of the first plan.
    pub fn start(&mut self, plan: &Plan) {
        let generation = self.shared.board.applied(&plan.hash, format!("routes started: {}", plan.routes.len()));
        for (name, route) in &plan.routes {
            self.routes.insert(name.clone(), RunningRoute::start(Arc::clone(route), &self.shared, generation));
        }
        for route in plan.settings.routes.values().filter(|route| !route.enabled) {
            let facts = RouteFacts {
                delivery: route.delivery,
                group: route.source.group.clone(),
                plugins: Vec::new(),
                workers: route.workers,
            };
            let report = self.shared.board.route(&route.name, facts);
            report.phase(RoutePhase::Disabled);
            self.disabled.push(report);
        }
    }

    /// Drains all routes at once. Returns the names of those that had not ended `within` that time.
    pub fn drain(self, within: Duration) -> Vec<RouteName> {
        let deadline = Instant::now() + within;
        self.shared.board.shutting_down();
        for route in self.routes.values() {
            route.order(|| Order::Drain { leave: false, within });
        }
        let late = self.routes.into_iter().filter_map(|(name, route)| (route.join(deadline) > 0).then_some(name));
        late.collect()
    }
}
