package sandbox

import (
	"context"
	"os"
	"os/exec"
	"testing"
)

// BenchmarkRun measures an instance from WriteBundle to after Delete, with each runtime, beside that runtime's own "run" of the same bundle.
func BenchmarkRun(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("SKIPPED: running instances needs root")
	}
	for _, name := range []string{"crun", "runc"} {
		r := newRig(b, name)
		c := r.config("exit", "0")
		c.Memory, c.CPUs, c.Filters = 256<<20, 2, r.dir+"/filters"
		if err := WriteBundle(c); err != nil {
			b.Fatal(err)
		}
		in := r.instance(c)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := WriteBundle(c); err != nil {
					b.Fatal(err)
				}
				p, err := r.supervisor.Start(context.Background(), in)
				if err != nil {
					b.Fatal(err)
				}
				if code, err := p.Wait(); code != 0 || err != nil {
					b.Fatal(code, err)
				}
				if err := Delete(context.Background(), in.State, in.ID, c.Cgroup); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"-alone", func(b *testing.B) {
			if r.supervisor.runtime.hideUnified {
				b.Skip("SKIPPED: it does not run by itself on a hybrid host")
			}
			for b.Loop() {
				if out, err := exec.Command(r.supervisor.runtime.Path, "--root", in.State, "run", "--bundle", in.Bundle, in.ID).CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
			}
		})
	}
}
