package cluster_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"thaw/cluster"
	"thaw/internal/testmount"
)

// TestPowerCut: records that were acknowledged are on the disk, not only in the
// kernel's memory.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	var acknowledged []string
	found, unmount := testmount.PowerCut(t, func(dir string) *exec.Cmd {
		p := startProcess(t, "writer", cluster.ServerOptions{Dir: filepath.Join(dir, "state"), Token: token})
		for range 200 {
			line, err := p.out.ReadString('\n')
			is(t, err, nil)
			acknowledged = append(acknowledged, strings.TrimSpace(line))
		}
		return p.cmd
	})
	s := serve(t, filepath.Join(found, "state"))
	t.Cleanup(func() { s.Close() }) // if the test fails
	c := dial(t, s.URL())
	r, err := c.Records(t.Context(), "r")
	is(t, err, nil)
	has(t, r, acknowledged)
	c.Close()
	is(t, s.Close(), nil)
	unmount()
}
