package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"thaw/cgroups"
	"thaw/network"
)

// freezerFinding looks at what stops idle instances.
func freezerFinding() finding {
	f := finding{Name: "freezer"}
	h, err := cgroups.Find()
	if err != nil {
		f.Detail, f.Mend = "none: idle instances go on running", "mount -t cgroup2 none /sys/fs/cgroup"
		return f
	}
	switch name := h.Freezer(); name {
	case "":
		f.Detail, f.Mend = "none: idle instances go on running", "mount -t cgroup2 none /sys/fs/cgroup"
	default:
		f.OK, f.Detail = true, fmt.Sprintf("%s, on a host with cgroup %s", name, h.Version())
	}
	return f
}

// forwardingFinding looks whether another firewall is in the way of functions
// with a way out.
func forwardingFinding() finding {
	f := finding{Name: "forwarding", OK: true, Detail: "no firewall drops what passes"}
	obstacles, err := network.Obstacles()
	switch {
	case err != nil:
		f.OK, f.Detail = false, err.Error()
	case len(obstacles) > 0:
		first := obstacles[0]
		f.OK, f.Detail = false, fmt.Sprintf("dropped by %s: functions do not get out", strings.Join(obstacles, ", "))
		f.Mend = fmt.Sprintf("nft insert rule %s iifname 'thaw-*' accept; nft insert rule %s oifname 'thaw-*' ct state established,related accept", first, first)
	}
	return f
}

// tryEgress makes a network with a way out, in a folder of its own, and removes
// it.
func tryEgress(ctx context.Context) finding {
	f := finding{Name: "egress"}
	var took time.Duration
	dir, err := os.MkdirTemp("", "thaw-doctor-")
	if err == nil {
		took, err = makeEgress(ctx, dir)
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		f.Detail = err.Error() + ": functions run without a network"
		f.Mend = "modprobe -a nf_tables nft_masq nft_reject_inet nft_ct nft_connlimit veth; thaw doctor"
		return f
	}
	f.OK, f.Detail = true, fmt.Sprintf("a network with a way out, in %v", took.Round(100*time.Microsecond))
	return f
}

// makeEgress has networks of a state folder, for a moment.
func makeEgress(ctx context.Context, state string) (took time.Duration, err error) {
	n, err := network.Open(network.Options{State: state})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if _, err := n.Gateway(); err != nil {
		return 0, err
	}
	begun := time.Now()
	if _, err := n.New(ctx, "doctor", true); err != nil {
		return 0, err
	}
	return time.Since(begun), nil
}
