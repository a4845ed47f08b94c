package worker

import (
	"encoding/json"
	"net/http"
	"slices"
	"testing"

	"thaw/invokewire"
)

func (r *rig) empty(query string) (e Emptied) {
	r.t.Helper()
	resp := r.do("POST", "/empty"+query, nil)
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != http.StatusOK {
		r.t.Fatalf("%s, %v", resp.Status, err)
	}
	return e
}

// An emptied worker has no instance, agent, mount or loop device; its instances
// are gone for who knew them, and the next start is a full one. Without images,
// only instances end, and the next start is partial.
func TestEmpty(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	if got := r.invoke("i1", "r1", `{}`); got.status != http.StatusOK {
		t.Fatalf("%+v", got)
	}
	r.until("a slot is prepared", func() bool { return r.w.slots.count() > 0 })
	if e := r.empty("?keep=images"); e.Ended != 1 || e.Busy != 0 {
		t.Errorf("%+v", e)
	}
	if got := r.invoke("i1", "r2", `{}`); got.status != http.StatusGone {
		t.Errorf("%+v", got)
	}
	r.start("i2", "", spec(nil))
	if got := r.invoke("i2", "r3", `{}`); got.kind != invokewire.StartPartial {
		t.Errorf("%+v", got)
	}
	if e := r.empty(""); e.Ended != 1 {
		t.Errorf("%+v", e)
	}
	// Each new mount namespace of this machine has copies of what was mounted, for a moment.
	r.until("nothing is attached", func() bool { return len(r.empty("").Attached) == 0 })
	if n := r.w.slots.count(); n != 0 {
		t.Errorf("%d slots are prepared again with nobody asking", n)
	}
	if left := agents(r.w.o.State); len(left) > 0 {
		t.Errorf("agents are started again with nobody asking: %v", left)
	}
	r.start("i3", "", spec(nil))
	if got := r.invoke("i3", "r4", `{}`); got.kind != invokewire.StartFull {
		t.Errorf("%+v", got)
	}
	r.until("slots are prepared again", func() bool { return r.w.slots.count() > 0 && r.w.blanks.count() > 0 })
	if resp := r.do("POST", "/empty?keep=all", nil); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%s", resp.Status)
	}
}

// What works stays, with its image.
func TestEmptyBusy(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	open, done := r.gate("i1"), make(chan said, 1)
	go func() { done <- r.invoke("i1", "r1", `{"do":{`+gated+`}}`) }()
	r.until("it works", func() bool {
		i := r.w.find("i1")
		return i.state().Phase == invokewire.PhaseBusy
	})
	if e := r.empty(""); e.Busy != 1 || e.Ended != 0 || len(e.Attached) == 0 {
		t.Errorf("%+v", e)
	}
	open()
	if got := <-done; got.status != http.StatusOK || got.failed != "" {
		t.Errorf("%+v", got)
	}
}

// What keeps base images is asked for them; a worker without has none.
func TestPins(t *testing.T) {
	for _, pins := range [][]invokewire.Pin{nil, {{Name: "ours", Image: "1", Pinned: 5, Missing: 2}}} {
		r := newRig(t, func(o *Options) {
			if pins != nil {
				o.Pins = func() []invokewire.Pin { return pins }
			}
		})
		resp := r.do("GET", "/pins", nil)
		var got []invokewire.Pin
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got == nil || !slices.Equal(got, pins) {
			t.Errorf("%+v, %v", got, err)
		}
		resp.Body.Close()
	}
}
