package cgroups

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What the kernel takes of quotas and periods.
const (
	minQuota  = time.Millisecond
	maxPeriod = time.Second
)

// SetQuota lets the group's processes run for quota in each period, all
// threads on all processors together: a quota of two periods is two
// processors. Both are at least 1 ms, a period is at most 1 s. It is hard: what
// the group does not use it does not save. It takes hold at once, in one
// write(2) (two on v1 if the period changes).
//
// While the group is being frozen, it is only remembered until that is over.
func (g *Group) SetQuota(quota, period time.Duration) error {
	if quota < minQuota || period < minQuota || period > maxPeriod {
		return fmt.Errorf("cgroup %s: quota %v in %v: want at least %v in %v to %v", g.path, quota, period, minQuota, minQuota, maxPeriod)
	}
	q, p := strconv.FormatInt(quota.Microseconds(), 10), strconv.FormatInt(period.Microseconds(), 10)
	return g.setLimit(q, p)
}

// Unlimited lets the group's processes run as the machine has room. It takes
// hold at once, in one write(2).
func (g *Group) Unlimited() error { return g.setLimit(unlimited(g.splitCPU()), "") }

// SetMemory limits the memory of the group's processes, in bytes. It fails if
// they have more, and the kernel cannot take it from them.
func (g *Group) SetMemory(limit int64) error {
	dir, file := g.memoryFile("memory.limit_in_bytes", "memory.max")
	if dir == "" {
		return fmt.Errorf("cgroup %s: memory: %w", g.path, ErrNoController)
	}
	if err := writeTo(dir, file, strconv.FormatInt(limit, 10)); err != nil {
		return fmt.Errorf("cgroup %s: %s %d: %w", g.path, file, limit, err)
	}
	return nil
}

// SetWeight says how much of the processors the group gets where they are short,
// beside all others': a usual group and, on v1, any process outside of groups has
// 100, and 1 to 10,000 are possible. One that is light also waits longer for its
// turn.
func (g *Group) SetWeight(weight int) error {
	dir, file := g.v2, "cpu.weight"
	if g.splitCPU() {
		dir, file, weight = g.v1["cpu"], "cpu.shares", max(2, weight*1024/100) // cgroup v1 has 1024 for 100, and no less than 2
	}
	if g.quota == nil {
		return fmt.Errorf("cgroup %s: weight: %w: cpu", g.path, ErrNoController)
	}
	if err := writeTo(dir, file, strconv.Itoa(weight)); err != nil {
		return fmt.Errorf("cgroup %s: %s %d: %w", g.path, file, weight, err)
	}
	return nil
}

// splitCPU tells whether quota and period are two files, as on v1.
func (g *Group) splitCPU() bool { return g.v1["cpu"] != "" }

func unlimited(v1 bool) string {
	if v1 {
		return "-1"
	}
	return "max"
}

// setLimit sets a quota in microseconds, or none; "" leaves the period.
func (g *Group) setLimit(quota, period string) error {
	if g.quota == nil {
		return fmt.Errorf("cgroup %s: quota: %w: cpu", g.path, ErrNoController)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	limit := quota
	if g.splitCPU() && period != "" && period != g.period {
		if err := writeTo(g.v1["cpu"], "cpu.cfs_period_us", period); err != nil {
			return fmt.Errorf("cgroup %s: period: %w", g.path, err)
		}
		g.period = period
	} else if !g.splitCPU() && period != "" {
		limit = quota + " " + period
	}
	before := g.limit
	g.limit = limit
	if g.raised {
		return nil
	}
	if err := write(g.quota, limit); err != nil {
		g.limit = before
		return fmt.Errorf("cgroup %s: quota %s: %w", g.path, limit, err)
	}
	return nil
}

// raise lifts the limit without forgetting it. The caller holds mu.
func (g *Group) raise() error {
	none := unlimited(g.splitCPU())
	if g.quota == nil || g.raised || strings.HasPrefix(g.limit, none) {
		return nil
	}
	if err := write(g.quota, none); err != nil {
		return err
	}
	g.raised = true
	return nil
}

// lower ends what raise began. The caller holds mu.
func (g *Group) lower() error {
	if !g.raised {
		return nil
	}
	if err := write(g.quota, g.limit); err != nil {
		return err
	}
	g.raised = false
	return nil
}
