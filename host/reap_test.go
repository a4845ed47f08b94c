package host

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/mount"
)

// An instance is its process's, and nobody's after that.
func TestInstance(t *testing.T) {
	h := openTest(t)
	p := h.helper(t, "instance", KindRun)
	id, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	id = strings.TrimSpace(id)
	if removed, err := h.Reap(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("reaped %v, %v", removed, err)
	}
	all, err := h.Instances()
	if err != nil || len(all) != 1 || all[0].ID != id || all[0].Keeper != p.cmd.Process.Pid || all[0].Kind != KindRun || !all[0].Kept() {
		t.Fatalf("%+v, %v", all, err)
	}
	i := &all[0]
	if want := cgroupPrefix + filepath.Base(h.run) + "-" + id; i.Cgroup() != want || i.Host() != h {
		t.Errorf("its group is %s, want %s", i.Cgroup(), want)
	}
	p.leave()
	if i.Kept() {
		t.Error("kept by nobody")
	}
	if err := i.Stop(t.Context()); err != nil {
		t.Errorf("stopping what has ended: %v", err)
	}
	if all, err := h.Instances(); err != nil || len(all) > 0 {
		t.Errorf("%+v, %v", all, err)
	}
	h.empty(t)
}

// Every kind of thing that an instance may leave goes with the next Reap.
func TestReapInstance(t *testing.T) {
	h := openTest(t)
	target := t.TempDir()
	p := h.helper(t, "instance", KindRun, target)
	id, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	i := &Instance{ID: strings.TrimSpace(id), host: h}
	tmpfs(t, i.Dir("rootfs"))
	tmpfs(t, i.Dir("rootfs")) // twice at one place
	tmpfs(t, target)          // not the instance's: another has mounted there
	program := exec.Command("sleep", "3600")
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	h.group(t, i.Cgroup(), program.Process.Pid)
	for _, dir := range []string{h.dir("instances", "cccccccccccc", "runtime", "x"), h.overlays() + "/" + i.ID + "/upper/a", h.overlays() + "/0123456789ab/work", h.dir("instances", ".aaaaaaaaaaaa.1.1", "bundle")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	other := h.helper(t, "instance", KindMount)
	if _, err := other.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	p.kill()
	removed, err := h.Reap(t.Context())
	slices.Sort(removed)
	want := []string{"instance " + i.ID, "instance cccccccccccc", "overlay 0123456789ab"}
	if slices.Sort(want); err != nil || !slices.Equal(removed, want) {
		t.Errorf("reaped %v, %v", removed, err)
	}
	_ = program.Wait() // the state says it
	if !program.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() {
		t.Errorf("the program ended with %v", program.ProcessState)
	}
	if mounts, err := mount.Under(target); err != nil || len(mounts) != 1 {
		t.Errorf("at the folder: %v, %v", mounts, err)
	}
	if err := mount.Unmount(target); err != nil {
		t.Error(err)
	}
	if items, err := os.ReadDir(h.dir("instances")); err != nil || len(items) != 1 {
		t.Errorf("the other's folder: %v, %v", items, err)
	}
	other.leave()
	h.empty(t)
	if removed, err := h.Reap(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("reaped %v again, %v", removed, err)
	}
}

// A failure is told, and keeps nothing else from being removed.
func TestReapGoesOn(t *testing.T) {
	h := openTest(t)
	h.leave(t, "aaaa aaaa", `{"kind":"run"}`) // no runtime and no group has such a name
	h.leave(t, "bbbbbbbbbbbb", `{"kind":"run"}`)
	removed, err := h.Reap(t.Context())
	if err == nil || !strings.Contains(err.Error(), "aaaa aaaa") || !slices.Contains(removed, "instance bbbbbbbbbbbb") {
		t.Errorf("reaped %v, %v", removed, err)
	}
	if err := os.RemoveAll(h.dir("instances", "aaaa aaaa")); err != nil {
		t.Fatal(err)
	}
}

// leave makes the folder of an instance that nobody keeps, with this record.
func (h *Host) leave(t *testing.T, id, record string) {
	t.Helper()
	err := os.MkdirAll(h.dir("instances", id, "rootfs"), 0o711)
	for name, text := range map[string]string{"lock": "", "instance.json": record} {
		if err == nil {
			err = os.WriteFile(h.dir("instances", id, name), []byte(text), 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A record that says nothing hides no instance, and keeps none from being
// cleaned once nobody keeps it.
func TestDamagedInstances(t *testing.T) {
	h := openTest(t)
	p := h.helper(t, "instance", KindRun)
	kept, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	kept = strings.TrimSpace(kept)
	records := map[string]string{
		"aaaaaaaaaaaa": "", "bbbbbbbbbbbb": "{", "cccccccccccc": "null", "dddddddddddd": `{"kind":"run","started":3}`, "eeeeeeeeeeee": `{"id":"../../x","kind":"other"}`,
	}
	for id, record := range records {
		h.leave(t, id, record)
		tmpfs(t, h.dir("instances", id, "rootfs"))
	}
	if err := os.WriteFile(h.dir("instances", kept, "instance.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := h.Instances()
	if err != nil || len(all) != len(records)+1 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, i := range all {
		if _, left := records[i.ID]; left == i.Kept() || i.Damaged() != true || !left && i.ID != kept {
			t.Errorf("%+v, kept %v", i, i.Kept())
		}
	}
	if removed, err := h.Reap(t.Context()); err != nil || len(removed) != len(records) || slices.Contains(removed, "instance "+kept) {
		t.Errorf("reaped %v, %v", removed, err)
	}
	p.kill()
	if removed, err := h.Reap(t.Context()); err != nil || !slices.Equal(removed, []string{"instance " + kept}) {
		t.Errorf("reaped %v, %v", removed, err)
	}
	h.empty(t)
}

// What was left of an image and a fetcher: mounts, processes, folders.
func TestReapShared(t *testing.T) {
	h := openTest(t)
	const image, fetcher = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
	for _, dir := range []string{h.dir("images", image, "root"), h.dir("fetchers", fetcher)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	for _, lock := range []string{h.dir("images", image+".lock"), h.dir("fetchers", fetcher+".lock"), h.dir("images", "cccccccccccc.lock")} {
		if err := os.WriteFile(lock, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tmpfs(t, h.dir("images", image, "root"))
	agent, server := h.helper(t, "sleep"), h.helper(t, "sleep")
	agent.expect("asleep")
	server.expect("asleep")
	one, err := identify(agent.cmd.Process.Pid)
	two, terr := identify(server.cmd.Process.Pid)
	if err := errors.Join(err, terr,
		writeRecord(h.dir("images", image, "image.json"), imageRecord{Process: one}),
		writeRecord(h.dir("fetchers", fetcher, "fetcher.json"), fetcherRecord{Process: two})); err != nil {
		t.Fatal(err)
	}
	agent.in.Close() // as an agent ends with its mounts
	removed, err := h.Reap(t.Context())
	if err != nil || !slices.Equal(removed, []string{"image " + image, "fetcher " + fetcher}) {
		t.Errorf("reaped %v, %v", removed, err)
	}
	if one.alive() || two.alive() {
		t.Error("agent or fetcher is alive")
	}
	h.empty(t)
}

// Instances of another state folder are another's.
func TestOtherState(t *testing.T) {
	h, other := openTest(t), openTest(t)
	p := other.helper(t, "use", testKey)
	p.expect("used")
	p.kill()
	if removed, err := h.Reap(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("reaped %v, %v", removed, err)
	}
	if all, err := h.Instances(); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
	if h.run == other.run || h.Filters() != other.Filters() {
		t.Error("two states have one folder, or filters of their own")
	}
}

func TestOpenNeedsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "sudo") {
			t.Errorf("got %v", err)
		}
		return
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file for a state: %v", err)
	}
}

// What Handoff passes on, Resume takes; nothing else starts a shim.
func TestResumeRefuses(t *testing.T) {
	h := openTest(t)
	for _, args := range [][]string{nil, {h.state}, {h.state, "x", "3", "4", "5", "6"}, {h.state, "x", "1", "4", "5"}, {h.state, "x", "a", "4", "5"}, {h.state, "nosuch", "1003", "1004", "1005"}} {
		if _, _, _, err := Resume(args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}

// A fetcher whose record is damaged is found by its log, and ended.
func TestReapDamagedFetcher(t *testing.T) {
	h := openTest(t)
	const key = "aaaaaaaaaaaa"
	if err := errors.Join(os.Mkdir(h.dir("fetchers", key), 0o711), os.WriteFile(h.dir("fetchers", key+".lock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(h.dir("fetchers", key, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for _, record := range []string{"", "{"} {
		if err := os.WriteFile(h.dir("fetchers", key, "fetcher.json"), []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
		program := exec.Command("sleep", "3600")
		program.Stdout = log
		if err := program.Start(); err != nil {
			t.Fatal(err)
		}
		if err := h.endFetcher(t.Context(), key); err != nil {
			t.Error(err)
		}
		_ = program.Wait() // the state says it
		if program.ProcessState.Success() {
			t.Error("it slept to the end")
		}
	}
	if removed, err := h.Reap(t.Context()); err != nil || !slices.Equal(removed, []string{"fetcher " + key}) {
		t.Errorf("reaped %v, %v", removed, err)
	}
	h.empty(t)
}
