package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Fact is one thing that running an image needs of the host.
type Fact struct {
	Name   string // "user namespaces"
	OK     bool
	Detail string // what was found, or what is wrong
	Mend   string // the command that mends it on Debian; "" if all is well or no command does
}

// checkTime bounds one runtime's answer: gVisor's takes a tenth of a second.
const checkTime = 10 * time.Second

// Check looks at the host. It changes nothing and takes some 50 ms.
func Check(ctx context.Context) []Fact {
	root := Fact{Name: "root", OK: os.Geteuid() == 0, Detail: fmt.Sprintf("user %d", os.Geteuid())}
	if !root.OK {
		root.Detail, root.Mend = root.Detail+": mounting and running need root", "sudo thaw …"
	}
	return append(checkRuntimes(ctx), checkCgroups(),
		checkNumber("user namespaces", "/proc/sys/user/max_user_namespaces", "sysctl -w user.max_user_namespaces=65536"),
		checkWord("overlayfs", "overlay", "/proc/filesystems", "modprobe overlay"),
		checkWord("ext4", "ext4", "/proc/filesystems", "modprobe ext4"),
		checkDevice("FUSE", "/dev/fuse", "modprobe fuse"),
		checkDevice("loop devices", "/dev/loop-control", "modprobe loop"),
		checkWord("seccomp", "errno", "/proc/sys/kernel/seccomp/actions_avail", ""),
		root)
}

// checkRuntimes tells of the runtimes that are there, first the one that Find picks.
func checkRuntimes(ctx context.Context) []Fact {
	var facts []Fact
	for _, name := range runtimeNames() {
		if r, err := find(name); err == nil {
			facts = append(facts, checkRuntime(ctx, r))
		}
	}
	if len(facts) == 0 {
		return []Fact{{Name: "OCI runtime", Detail: "neither of " + strings.Join(runtimeNames(), ", "), Mend: "apt-get install crun"}}
	}
	return facts
}

func checkRuntime(ctx context.Context, r Runtime) Fact {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, r.Path, "--version").Output()
	if err != nil {
		return Fact{Name: "OCI runtime", Detail: fmt.Sprintf("%s --version: %v", r.Path, err), Mend: "apt-get install --reinstall " + r.Name}
	}
	first, _, _ := bytes.Cut(out, []byte("\n"))
	f := Fact{Name: "OCI runtime", OK: true, Detail: fmt.Sprintf("%s (%s)", first, r.Path)}
	if r.hideUnified {
		f.Detail += ", run where it does not see cgroup v2"
	}
	return f
}

// checkCgroups wants the controllers that limit an instance, on v1, v2, or both.
func checkCgroups() Fact {
	f := Fact{Name: "cgroups", Mend: "mount -t cgroup2 none /sys/fs/cgroup"}
	dirs, err := hierarchies()
	if err != nil || len(dirs) == 0 {
		f.Detail = "none mounted"
		return f
	}
	var found []string
	v1, v2 := false, false
	for _, dir := range dirs {
		if !isCgroup2(dir) {
			v1 = true
			found = append(found, strings.Split(filepath.Base(dir), ",")...) // mounted by their names
			continue
		}
		v2 = true
		data, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		found = append(found, strings.Fields(string(data))...)
	}
	version := map[[2]bool]string{{true, false}: "v1", {false, true}: "v2", {true, true}: "v1 and v2 (hybrid)"}[[2]bool{v1, v2}]
	var missing []string
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(found, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		f.Detail = fmt.Sprintf("%s, without %s", version, strings.Join(missing, ", "))
		if slices.Contains(missing, "memory") {
			f.Mend = "add cgroup_enable=memory to the kernel's command line, and boot"
		}
		return f
	}
	slices.Sort(found)
	return Fact{Name: f.Name, OK: true, Detail: version + ": " + strings.Join(slices.Compact(found), " ")}
}

// checkNumber wants a number above zero in a file of the kernel's.
func checkNumber(name, file, mend string) Fact {
	data, err := os.ReadFile(file)
	if text := strings.TrimSpace(string(data)); err == nil && text != "0" {
		return Fact{Name: name, OK: true, Detail: "up to " + text}
	}
	return Fact{Name: name, Detail: "none: see " + file, Mend: mend}
}

// checkWord wants a word in a list of the kernel's.
func checkWord(name, word, file, mend string) Fact {
	data, _ := os.ReadFile(file)
	if slices.Contains(strings.Fields(string(data)), word) {
		return Fact{Name: name, OK: true, Detail: word + " in " + file}
	}
	return Fact{Name: name, Detail: "no " + word + " in " + file, Mend: mend}
}

func checkDevice(name, file, mend string) Fact {
	if info, err := os.Stat(file); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return Fact{Name: name, Detail: "no " + file, Mend: mend}
	}
	return Fact{Name: name, OK: true, Detail: file}
}
