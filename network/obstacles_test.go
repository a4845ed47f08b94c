package network

import (
	"slices"
	"testing"

	"github.com/google/nftables"
)

// A firewall that drops what passes, as docker's does, is told of; and it is one.
func TestObstacles(t *testing.T) {
	n := open(t, Options{Resolv: newOutside(t)})
	ns := newNS(t, n, "a", true)
	if all, err := Obstacles(); err != nil || len(all) != 0 {
		t.Errorf("without a firewall: %v, %v", all, err)
	}
	conn, err := nftables.New()
	must(t, err)
	drop := nftables.ChainPolicyDrop
	table := conn.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	conn.AddChain(&nftables.Chain{Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	conn.AddChain(&nftables.Chain{Name: "INPUT", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	must(t, conn.Flush())
	if all, err := Obstacles(); err != nil || !slices.Equal(all, []string{"ip filter FORWARD"}) {
		t.Errorf("with a firewall: %v, %v", all, err)
	}
	inside(t, ns, func() {
		if got, err := getWithin(public+":80", shortTime); err == nil {
			t.Errorf("a firewall that lets through: %q", got)
		}
	})
	conn.DelTable(table)
	must(t, conn.Flush())
	inside(t, ns, func() {
		if _, err := get(public + ":80"); err != nil {
			t.Errorf("without it again: %v", err)
		}
	})
}
