package worker

import (
	"testing"
)

// A cold start and a warm invoke of a real function.
func TestColdAndWarm(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	cold := r.invoke("i1", "req-1", `{"hello":1}`)
	t.Logf("%+v", cold)
	warm := r.invoke("i1", "req-2", `{"hello":2}`)
	t.Logf("%+v", warm)
}

func work(dir, runtime string) error { return nil }
