package main

import (
	"strings"
	"testing"
)

const mib, gib = 1 << 20, 1 << 30

// The zone takes 5 % of budget and disk unless told, and all takes the budget.
func TestPlan(t *testing.T) {
	for name, c := range map[string]struct {
		up           upCmd
		memory, disk int64
		want         plan
		err          string
	}{
		"usual":    {upCmd{Nodes: 5}, 40 * gib, 100 * gib, plan{30 * gib, 30*gib - 768*mib - 5*(30*gib/100), 5, 30 * gib / 100, gib}, ""},
		"no zone":  {upCmd{Budget: 4 * gib}, 8 * gib, gib, plan{budget: 4 * gib, instances: 4*gib - 768*mib}, ""},
		"least":    {upCmd{Nodes: 32, Budget: 2 * gib}, 2 * gib, 0, plan{2 * gib, 768 * mib, 32, 16 * mib, 20 * mib}, ""},
		"told":     {upCmd{Nodes: 4, ZoneMemory: 2 * gib, ZoneDisk: 400 * gib}, 8 * gib, gib, plan{6 * gib, 4*gib - 768*mib, 4, 512 * mib, 100 * gib}, ""},
		"small":    {upCmd{Budget: 2*gib - 1}, 8 * gib, gib, plan{}, "--budget 2.0 GiB: want 2.0 GiB to what the machine has, 8.0 GiB"},
		"half":     {upCmd{}, 2 * gib, gib, plan{}, "--budget 1.5 GiB"},
		"large":    {upCmd{Budget: 9 * gib}, 8 * gib, gib, plan{}, "--budget 9.0 GiB"},
		"many":     {upCmd{Nodes: 33}, 8 * gib, gib, plan{}, "--nodes 33"},
		"negative": {upCmd{Nodes: -1}, 8 * gib, gib, plan{}, "--nodes -1"},
		"little":   {upCmd{Nodes: 5, ZoneMemory: 80*mib - 1}, 8 * gib, gib, plan{}, "--zone-memory"},
		"all":      {upCmd{Nodes: 5, ZoneMemory: 3*gib + 1}, 8 * gib, gib, plan{}, "--zone-memory 3.0 GiB: want 80.0 MiB to half of the budget, 3.0 GiB"},
		"tiny":     {upCmd{Nodes: 5, ZoneDisk: 1}, 8 * gib, gib, plan{}, "--zone-disk 1 B: want 100.0 MiB at least"},
	} {
		got, err := c.up.divide(c.memory, c.disk)
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) || c.err == "" && (err != nil || got != c.want) {
			t.Errorf("%s: %+v, %v, want %+v, %s", name, got, err, c.want, c.err)
		}
	}
	if p, err := (&upCmd{Nodes: 5, Budget: 2 * gib}).plan(t.TempDir()); err != nil || p.nodeFlash < minFlash {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := new(upCmd).plan("/none"); err == nil {
		t.Error("no folder, no error")
	}
}
