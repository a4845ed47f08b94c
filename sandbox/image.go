package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	maxConfig   = 4 << 20 // bytes of an image's config, as when it is converted
	maxUserFile = 1 << 20 // bytes of /etc/passwd and /etc/group: 10,000 users
)

// imageConfig is what running an image needs of its config JSON. Unknown fields, null and missing ones are fine, as they are for docker.
type imageConfig struct {
	Entrypoint, Cmd words
	Env             []string
	User            string
	WorkingDir      string
	StopSignal      string
}

// words is a list of strings that old images give as one string.
type words []string

// UnmarshalJSON takes a list, a string, or null.
func (w *words) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil && len(data) > 0 && data[0] == '"' {
		*w = words{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(w))
}

func parseImage(data []byte) (imageConfig, error) {
	if len(data) > maxConfig {
		return imageConfig{}, fmt.Errorf("image config: %d bytes, limit %d", len(data), maxConfig)
	}
	var whole struct {
		Config json.RawMessage `json:"config"`
	}
	config := imageConfig{}
	err := json.Unmarshal(data, &whole)
	if err == nil && len(whole.Config) > 0 {
		err = json.Unmarshal(whole.Config, &config)
	}
	if err == nil && !utf8.Valid(whole.Config) {
		err = errNotUTF8
	}
	if err != nil {
		return imageConfig{}, fmt.Errorf("image config: %w", err)
	}
	return config, nil
}

// errNotUTF8 keeps what a runtime is told from being changed on the way: it is told in JSON, which has no other bytes.
var errNotUTF8 = errors.New("not UTF-8, and OCI runtimes are told everything in JSON, which has nothing else")

// checkText refuses the first that JSON would change.
func checkText(what string, texts ...string) error {
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return fmt.Errorf("%s %q: %w", what, text, errNotUTF8)
		}
	}
	return nil
}

// args joins entry point and command; a command of the user's takes the place of the image's.
func (i imageConfig) args(command []string) ([]string, error) {
	if len(command) == 0 {
		command = i.Cmd
	}
	args := slices.Concat(i.Entrypoint, command)
	if len(args) == 0 || args[0] == "" {
		return nil, errNoCommand
	}
	if slices.ContainsFunc(args, hasNUL) {
		return nil, errors.New("command: an argument holds a NUL byte")
	}
	return args, nil
}

// dir is the working directory: the user's, which must be absolute, else the image's, taken from the root.
func (i imageConfig) dir(wish string) (string, error) {
	switch {
	case hasNUL(wish), hasNUL(i.WorkingDir):
		return "", errors.New("working directory: holds a NUL byte")
	case wish == "":
		return path.Join("/", i.WorkingDir), nil
	case !path.IsAbs(wish):
		return "", fmt.Errorf("working directory %q: want an absolute path", wish)
	}
	return path.Clean(wish), nil
}

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }

func lastElement(p string) string { return path.Base(path.Clean("/" + p)) }

// env is the environment: defaults, over them the image's, over them the user's.
func (c Config) env(image []string, home string) []string {
	e := environment{}
	e.set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	e.set("HOSTNAME", c.hostname())
	if c.Terminal {
		e.set("TERM", "xterm")
	}
	for _, kv := range image {
		if k, v, ok := strings.Cut(kv, "="); ok {
			e.set(k, v)
		}
	}
	for _, kv := range c.Env {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			v, ok = os.LookupEnv(k)
		}
		if !ok {
			e.unset(k)
			continue
		}
		e.set(k, v)
	}
	if !e.has("HOME") {
		e.set("HOME", home)
	}
	return e
}

// checkVariables is checkText for an environment, whose values may be secrets.
func checkVariables(env []string) error {
	for _, kv := range env {
		if k, _, _ := strings.Cut(kv, "="); !utf8.ValidString(kv) {
			return fmt.Errorf("variable %q: %w", k, errNotUTF8)
		}
	}
	return nil
}

// environment is a list of K=V, each K once, in the order in which they were first set.
type environment []string

func (e environment) index(k string) int {
	return slices.IndexFunc(e, func(kv string) bool { return strings.HasPrefix(kv, k+"=") })
}

func (e environment) has(k string) bool { return e.index(k) >= 0 }

// set leaves out what no program could be given: the kernel ends a string at NUL.
func (e *environment) set(k, v string) {
	if k == "" || hasNUL(k) || hasNUL(v) {
		return
	}
	if i := e.index(k); i >= 0 {
		(*e)[i] = k + "=" + v
		return
	}
	*e = append(*e, k+"="+v)
}

func (e *environment) unset(k string) {
	if i := e.index(k); i >= 0 {
		*e = slices.Delete(*e, i, i+1)
	}
}

// lookUser finds ids and home of a user by the rules of docker's --user, in the root file system's own lists.
func lookUser(root, name string) (specs.User, string, error) {
	passwd, err := readInRoot(root, "/etc/passwd")
	if err != nil {
		return specs.User{}, "", err
	}
	group, err := readInRoot(root, "/etc/group")
	if err != nil {
		return specs.User{}, "", err
	}
	u, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return specs.User{}, "", fmt.Errorf("user %q of the image: %w", name, err)
	}
	found := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	for _, id := range append([]int{u.Uid, u.Gid}, u.Sgids...) {
		if id >= IDCount {
			return specs.User{}, "", fmt.Errorf("user %q of the image: id %d is above %d", name, id, IDCount-1)
		}
	}
	for _, id := range u.Sgids {
		found.AdditionalGids = append(found.AdditionalGids, uint32(id))
	}
	if u.Home == "" {
		u.Home = "/"
	}
	return found, u.Home, nil
}

// readInRoot reads a small regular file of a root file system. A missing one reads as empty.
func readInRoot(root, name string) (io.Reader, error) {
	f, err := openInRoot(root, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY) // a FIFO must not hang us
	if errors.Is(err, fs.ErrNotExist) {
		return strings.NewReader(""), nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s of the image: not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxUserFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s of the image: %w", name, err)
	}
	if len(data) > maxUserFile {
		return nil, fmt.Errorf("%s of the image: longer than %d bytes", name, maxUserFile)
	}
	return bytes.NewReader(data), nil
}

// openInRoot opens a file of a root file system as if that were /, following symlinks only inside of it. An error that wraps
// fs.ErrNotExist: there is none.
func openInRoot(root, name string, flags uint64) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root file system %s: %v", root, err)
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(dir, name, &how)
	for range 10 { // the kernel gives up when something is renamed at the same time
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
		fd, err = unix.Openat2(dir, name, &how)
	}
	if errors.Is(err, unix.ENOTDIR) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("%s of the image: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
