package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

// counted looks at the numbers of all roles after one build, one cold start and
// one warm invoke.
func (r *region) counted(t *testing.T) {
	t.Helper()
	want := map[string]float64{
		"thaw_frontend_invokes_total": 2, "thaw_frontend_invoke_seconds": 2, "thaw_frontend_throttles_total": 0, "thaw_frontend_invokes": 0,
		"thaw_manager_instances": 1, "thaw_manager_workers": 1,
		"thaw_worker_starts_total": 1, "thaw_worker_start_seconds": 1, "thaw_worker_starts_failed_total": 0, "thaw_worker_invokes_total": 2,
		"thaw_worker_instances": 1, "thaw_worker_log_dropped_bytes_total": 0, "thaw_builder_builds_total": 1, "thaw_builder_jobs": 0,
		"thaw_events": 0, "thaw_events_tries_total": 0, "thaw_events_dead_total": 0, "thaw_role_up": float64(len(platformRoles) - 1), // no zone
	}
	var have map[string]*dto.MetricFamily
	// A role may be late to answer, and counts what it has done after others have seen it.
	r.until3("all roles tell their numbers", func() (err error) {
		have = scraped(t, r.metrics)
		v := sums(have)
		for name, n := range want {
			if got, there := v[name]; got != n || !there {
				err = errors.Join(err, fmt.Errorf("%s: %v, %t, want %v", name, got, there, n))
			}
		}
		return err
	})
	v := sums(have)
	if n, there := v["thaw_frontend_leases"]; n > 1 || !there { // it is given back after half a minute
		t.Errorf("thaw_frontend_leases: %v, %t, want 1 at most", n, there)
	}
	for _, name := range []string{"thaw_worker_start_stage_seconds", "thaw_worker_memory_limit_bytes", "thaw_cluster_connections", "thaw_cluster_used_bytes", "thaw_cluster_requests_total"} {
		if v[name] <= 0 {
			t.Errorf("%s: %v", name, v[name])
		}
	}
	// One start; an instance that was given back between the invokes is asked for again.
	started := 0.0
	for _, m := range have["thaw_manager_acquires_total"].GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "answer" && l.GetValue() == "started" {
				started += m.GetCounter().GetValue()
			}
		}
	}
	if started != 1 {
		t.Errorf("%v instances were asked for that had to be started, want 1", started)
	}
	documented(t, have)
}

// documented wants docs/metrics.md to list what roles tell, with kind and labels,
// and nothing else. Each series has the label process besides.
func documented(t *testing.T, have map[string]*dto.MetricFamily) {
	t.Helper()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## The function platform\n")
	rows := map[string]bool{}
	for line := range strings.Lines(section) {
		rows[strings.TrimSpace(line)] = true
	}
	ofRoles := regexp.MustCompile(`^thaw_(role|frontend|manager|worker|builder|cluster|events)(_|$)`)
	for name, f := range have {
		if !ofRoles.MatchString(name) {
			continue
		}
		var names []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			if l.GetName() != "process" {
				names = append(names, l.GetName())
			}
		}
		row := fmt.Sprintf("| `%s` | %s | %s | %s |", name, strings.ToLower(f.GetType().String()), strings.Join(names, ", "), strings.TrimSuffix(f.GetHelp(), "."))
		if !rows[row] {
			t.Errorf("docs/metrics.md does not have: %s", row)
		}
		delete(rows, row)
	}
	for row := range rows {
		if strings.HasPrefix(row, "| `thaw_") {
			t.Errorf("docs/metrics.md has what is not there: %s", row)
		}
	}
}
