package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
)

// instead says what to do in place of a flag that hands used to docker run type
// and run does not have, or nothing. It is no table: that would be built at every
// start.
func instead(flag string) string {
	switch flag {
	case "--rm":
		return "a container is always removed at its end: leave the flag out"
	case "--detach", "-d":
		return "a container runs in the foreground: leave that to a shell (&) or a service manager"
	case "--name":
		return "containers have no names: thaw ps lists them"
	case "--attach", "-a":
		return "output is always attached, and input by -i"
	case "--publish", "-p", "-P", "--publish-all":
		return "no ports are published: --net host shares this machine's network"
	case "--network":
		return "write --net none or --net host"
	case "--entrypoint":
		return "the image's entrypoint stays: what follows IMAGE takes the place of its Cmd alone"
	case "--env-file":
		return "give variables one by one: -e K=V"
	case "--hostname":
		return "a container's host name is its id"
	case "--privileged", "--cap-add":
		return "containers cannot be given more rights"
	case "--mount":
		return "write -v SRC:DST[:ro]"
	case "--restart":
		return "a container runs once: leave that to a shell or a service manager"
	case "--pull":
		return "a source is read again by thaw convert alone"
	}
	return ""
}

// unknownFlag begins what the parser says of one; the flag follows, and with a
// comma its guess.
const unknownFlag = "unknown flag "

// negative is what the parser says of a number below nothing, for which it knows
// another way to write it: no flag takes one.
const negative = `^(--[a-z0-9-]+): expected (?:int|float)[0-9]* value but got "(-[0-9.]+)"`

// explainFlag says of a flag of docker run that is not here what is in its
// place, and takes guesses of one letter from the parser's words: they are near
// to anything.
func explainFlag(err error, args []string) error {
	rest, ok := strings.CutPrefix(err.Error(), unknownFlag)
	if !ok {
		if m := regexp.MustCompile(negative).FindStringSubmatch(err.Error()); m != nil {
			return fmt.Errorf("%s %s: want a number that is not negative", m[1], m[2])
		}
		return err
	}
	flag, _, _ := strings.Cut(strings.TrimSuffix(rest, ","), ",")
	if slices.Contains(args, "run") && instead(flag) != "" {
		return fmt.Errorf("run has no %s: %s", flag, instead(flag))
	}
	if guess := strings.LastIndex(err.Error(), `"-`); guess >= 0 && !strings.Contains(err.Error(), `"--`) {
		return errors.New(unknownFlag + flag)
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
