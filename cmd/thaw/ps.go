package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"thaw/host"
	"thaw/network"
	"thaw/text"
)

type psCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

// Help teaches by example.
func (psCmd) Help() string {
	return `PID is the process that keeps the container or the mount: a signal to it reaches the program.
What is "left over" was killed; the next run, mount or prune cleans it up. Of what is "damaged"
somebody has spoilt the record; it runs on.

  thaw ps
  kill $(thaw ps --json | jq 'select(.image == "app").pid')`
}

// psLine is one instance, for --json.
type psLine struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Image   string    `json:"image"`
	ImageID string    `json:"image_id"`
	Status  string    `json:"status"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Command []string  `json:"command,omitempty"`
	Target  string    `json:"target,omitempty"`
}

// Run lists instances.
func (c *psCmd) Run(g *Globals) error {
	h, err := host.Open(g.State)
	if err != nil {
		return err
	}
	defer h.Close()
	all, err := h.Instances()
	if err != nil {
		return err
	}
	if c.JSON {
		enc := json.NewEncoder(g.stdout)
		for _, i := range all {
			if err := enc.Encode(psLine{i.ID, i.Kind, i.Image, i.ImageID, instanceStatus(&i), i.Keeper, i.Started, i.Command, i.Target}); err != nil {
				return err
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tIMAGE\tSTATUS\tSINCE\tPID\tWHAT")
	for _, i := range all {
		pid := "-"
		if i.Keeper > 0 {
			pid = strconv.Itoa(i.Keeper)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", i.ID, cmp.Or(text.Line(i.Image), "-"), instanceStatus(&i), since(i.Started, time.Now()), pid, text.Line(instanceWhat(&i, i.Kind == host.KindMount && i.Mounted())))
	}
	return t.Flush()
}

// instanceStatus tells a kept instance from a leftover, and both from one that
// is kept and whose record is of no use.
func instanceStatus(i *host.Instance) string {
	switch {
	case !i.Kept():
		return "left over"
	case i.Damaged():
		return "damaged"
	}
	return "running"
}

// instanceWhat says what an instance does. The record of a mount is there before
// the mount is, and after it: who waits for "mounted" finds the files.
func instanceWhat(i *host.Instance, mounted bool) string {
	switch {
	case i.Damaged():
		return "(its record is damaged)"
	case mounted:
		return "mounted at " + i.Target
	case i.Kind == host.KindMount:
		return "mount at " + i.Target
	case len(i.Command) == 0:
		return "(the image's own command)"
	}
	return strings.Join(i.Command, " ")
}

// since gives how long ago something was. A clock that was set back since has
// it in the future: nobody knows then.
func since(then, now time.Time) string {
	if d := now.Sub(then).Round(time.Second); d >= 0 && !then.IsZero() {
		return d.String()
	}
	return "-"
}

type pruneCmd struct{}

// Help teaches by example.
func (pruneCmd) Help() string {
	return `Removes mounts, processes, networks and files of which no container, mount or worker is left. It
touches neither images nor the cache: see thaw rm, and --cache-size. It looks at this --state, and
at what is left of others whose folder is gone.

  thaw prune`
}

// Run removes what killed processes have left.
func (pruneCmd) Run(ctx context.Context, g *Globals) error {
	h, err := host.Open(g.State)
	if err != nil {
		return err
	}
	defer h.Close()
	removed, err := h.Reap(ctx)
	for _, reap := range []func() ([]string, error){
		func() ([]string, error) { return host.ReapOthers(ctx) },
		func() ([]string, error) { return network.Reap(network.Options{State: g.State}) },
		func() ([]string, error) { return network.ReapOthers(network.RunDir) },
	} {
		more, rerr := reap()
		if removed = append(removed, more...); !errors.Is(rerr, network.ErrInUse) {
			err = errors.Join(err, rerr)
		}
	}
	for _, what := range removed {
		fmt.Fprintln(g.stdout, "removed "+what)
	}
	return err
}

type umountCmd struct {
	Dir string `arg:"" type:"path" help:"Where an image is mounted."`
}

// Help teaches by example.
func (umountCmd) Help() string {
	return `Also umount(8) and a signal to thaw mount end a mount. Of mounts on one folder it ends the topmost.

  thaw umount /mnt`
}

// Run ends the process that keeps the mount, and waits for it.
func (c *umountCmd) Run(ctx context.Context, g *Globals) error {
	h, err := host.Open(g.State)
	if err != nil {
		return err
	}
	defer h.Close()
	dir := c.Dir
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	found, err := h.MountedAt(dir)
	if err != nil {
		return err
	}
	if found != nil {
		err = found.Stop(ctx)
	}
	if _, rerr := h.Reap(ctx); rerr != nil {
		err = errors.Join(err, rerr)
	}
	if found == nil {
		return fmt.Errorf("%s: no image of this --state is mounted there (thaw ps)", c.Dir)
	}
	return err
}
