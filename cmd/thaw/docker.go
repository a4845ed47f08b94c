package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
)

// dockerFlags are flags that hands type by habit and run does not have.
var dockerFlags = map[string]string{
	"--rm":         "a container is always removed at its end: leave the flag out",
	"--detach":     "a container runs in the foreground: leave that to a shell (&) or a service manager",
	"--name":       "containers have no names: thaw ps lists them",
	"--attach":     "output is always attached, and input by -i",
	"--publish":    "no ports are published: --net host shares this machine's network",
	"--network":    "write --net none or --net host",
	"--entrypoint": "the image's entrypoint stays: what follows IMAGE takes the place of its Cmd alone",
	"--env-file":   "give variables one by one: -e K=V",
	"--hostname":   "a container's host name is its id",
	"--privileged": "containers cannot be given more rights",
	"--cap-add":    "containers cannot be given more rights",
	"--mount":      "write -v SRC:DST[:ro]",
	"--restart":    "a container runs once: leave that to a shell or a service manager",
	"--pull":       "a source is read again by thaw convert alone",
}

var dockerShort = map[string]string{"-d": "--detach", "-a": "--attach", "-p": "--publish", "-P": "--publish", "--publish-all": "--publish"}

var unknownFlag = regexp.MustCompile(`^unknown flag (--?[\w-]+)`)

// explainFlag says of a flag of docker run that is not here what is in its
// place, and takes guesses of one letter from the parser's words: they are near
// to anything.
func explainFlag(err error, args []string) error {
	m := unknownFlag.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	long := m[1]
	if l, ok := dockerShort[long]; ok {
		long = l
	}
	for _, arg := range args {
		if arg == "run" && dockerFlags[long] != "" {
			return fmt.Errorf("run has no %s: %s", m[1], dockerFlags[long])
		}
	}
	if guess := strings.LastIndex(err.Error(), `"-`); guess >= 0 && !strings.Contains(err.Error(), `"--`) {
		return errors.New(m[0])
	}
	return err
}

// checkPath refuses the path of a layout or archive where an image or a source
// is asked for.
func checkPath(what string) error {
	if !strings.HasPrefix(what, "/") && !strings.HasPrefix(what, "./") && !strings.HasPrefix(what, "../") && what != "." && what != ".." {
		return nil
	}
	path, _, _ := strings.Cut(what, ":")
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is a path, and nothing is there: a folder would be oci:%s", what, what)
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s is a path: say what it is, docker-archive:%s or oci-archive:%s", what, what, what)
	}
	return fmt.Errorf("%s is a path: say what it is, oci:%s", what, what)
}
