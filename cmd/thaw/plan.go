package main

import (
	"cmp"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"thaw/text"
)

const (
	// zoneShare is the part, as one in so many, of the budget and of the free disk
	// that the zone's nodes take together unless told: 5 %.
	zoneShare = 20
	// rolesMemory is what the roles themselves take of the budget, in bytes:
	// measured at 40 to 80 MiB each, with room for payloads under way.
	rolesMemory = 768 << 20
	// minBudget is the least that leaves room for a few small functions.
	minBudget = 2 << 30
	// minNode is the least that a zone node is worth running with, in bytes of
	// memory; minFlash what its flash cannot do without.
	minNode, minFlash = 16 << 20, 20 << 20
)

// plan is what thaw up takes of the machine, in bytes.
type plan struct {
	budget, instances     int64
	nodes                 int
	nodeMemory, nodeFlash int64
}

// plan divides the machine, and the disk that a folder is on.
func (c *upCmd) plan(folder string) (plan, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return plan{}, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return plan{}, &os.PathError{Op: "statfs", Path: folder, Err: err}
	}
	return c.divide(int64(info.Totalram)*int64(info.Unit), int64(fs.Bavail)*fs.Bsize)
}

// divide divides so much memory, and so much free disk.
func (c *upCmd) divide(memory, disk int64) (p plan, err error) {
	if p.budget = int64(c.Budget); p.budget == 0 {
		p.budget = memory / 4 * 3
	}
	if p.budget < minBudget || p.budget > memory {
		return p, fmt.Errorf("--budget %s: want %s to what the machine has, %s", text.Bytes(p.budget), text.Bytes(minBudget), text.Bytes(memory))
	}
	if c.Nodes < 0 || c.Nodes > maxDev {
		return p, fmt.Errorf("--nodes %d: want 0 to %d", c.Nodes, maxDev)
	}
	p.instances = p.budget - rolesMemory
	if p.nodes = c.Nodes; p.nodes == 0 {
		return p, nil
	}
	n := int64(p.nodes)
	if told := int64(c.ZoneMemory); told != 0 && (told < n*minNode || told > p.budget/2) {
		return p, fmt.Errorf("--zone-memory %s: want %s to half of the budget, %s", text.Bytes(told), text.Bytes(n*minNode), text.Bytes(p.budget/2))
	}
	if told := int64(c.ZoneDisk); told != 0 && told < n*minFlash { // that there is so much is seen when it is taken
		return p, fmt.Errorf("--zone-disk %s: want %s at least", text.Bytes(told), text.Bytes(n*minFlash))
	}
	p.nodeMemory = max(cmp.Or(int64(c.ZoneMemory), p.budget/zoneShare)/n, minNode)
	p.nodeFlash = max(cmp.Or(int64(c.ZoneDisk), disk/zoneShare)/n, minFlash)
	p.instances -= p.nodeMemory * n
	return p, nil
}
