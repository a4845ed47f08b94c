package events_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"thaw/cluster"
	"thaw/events"
	"thaw/internal/testmount"
)

// putterMain puts events for ever, and prints the id of each that was accepted.
func putterMain(dir string) error {
	ctx := context.Background()
	s, err := cluster.Serve(ctx, cluster.ServerOptions{Dir: dir, Token: token})
	if err != nil {
		return err
	}
	c, err := cluster.Dial(ctx, s.URL(), token)
	if err != nil {
		return err
	}
	q, err := events.Open(ctx, c, events.Options{})
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	for putter := range 3 {
		work.Go(func() {
			for n := putter; ; n += 3 {
				e := event(fmt.Sprint("f", n%7), strconv.Itoa(n))
				if err := q.Put(ctx, e); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				os.Stdout.WriteString(e.ID + "\n") // one write: whole lines only
			}
		})
	}
	work.Wait()
	return errors.New("nobody puts events any more")
}

// TestPowerCut: an event that was accepted is on the disk, and is tried once the
// power is back.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	accepted := map[string]bool{}
	found, _ := testmount.PowerCut(t, func(dir string) *exec.Cmd {
		p := startProcess(t, "putter "+filepath.Join(dir, "state"))
		for len(accepted) < 200 && p.out.Scan() {
			accepted[p.out.Text()] = true
		}
		if len(accepted) < 200 {
			t.Fatalf("%d events were accepted: %v", len(accepted), p.out.Err())
		}
		return p.cmd
	})
	_, q := openOn(t, filepath.Join(found, "state"), events.Options{})
	i := &tries{} // all succeed
	run(t, q, i)
	for id := range accepted {
		eventually(t, "event "+id+" is tried", func() bool { return len(i.of(id)) > 0 })
	}
}
