// Thaw starts containers without downloading their images first. This program
// is all of it; each verb has a file of its name.
//
// Exit status: 0 done; 1 failed, with one line on stderr; 2 the command line is
// wrong; 3 verify found damage or a difference; 130 interrupted.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"thaw/host"
	"thaw/keys"
	"thaw/text"
)

// Exit statuses besides 0 and 1.
const (
	exitUsage       = 2
	exitDamaged     = 3
	exitInterrupted = 130 // 128 + SIGINT, as a shell has it
)

// exitError is an error with an exit status of its own.
type exitError struct {
	code int
	error
}

// Unwrap gives the error.
func (e *exitError) Unwrap() error { return e.error }

// errConverting is in the error of a conversion that was interrupted.
var errConverting = errors.New("converting")

// errDamaged makes verify end with exitDamaged.
var errDamaged = errors.New("damaged")

// cli is the command line.
type cli struct {
	Globals

	Run        runCmd        `cmd:"" help:"Start a container from an image that has not arrived."`
	Mount      mountCmd      `cmd:"" help:"Mount an image at a folder."`
	Umount     umountCmd     `cmd:"" help:"Unmount an image."`
	Ps         psCmd         `cmd:"" help:"List what is running or left over."`
	Prune      pruneCmd      `cmd:"" help:"Clean what killed processes have left."`
	Fetcher    fetcherCmd    `cmd:"" hidden:""`
	Trace      traceCmd      `cmd:"" hidden:""`
	Convert    convertCmd    `cmd:"" help:"Turn an OCI image into a device of sealed, deduplicated chunks."`
	Images     imagesCmd     `cmd:"" help:"List images."`
	Inspect    inspectCmd    `cmd:"" help:"Show what an image's manifest and config say, as JSON."`
	Rm         rmCmd         `cmd:"" help:"Remove an image's name, and with its last name the image."`
	Df         dfCmd         `cmd:"" help:"Show what tenants and images take in the origin, shared and alone."`
	Verify     verifyCmd     `cmd:"" help:"Read and check every chunk of an image; compare it with its source; repair it."`
	Export     exportCmd     `cmd:"" help:"Write an image's device to a sparse file, for e2fsck, debugfs or mount."`
	Zone       zoneCmd       `cmd:"" help:"Run and watch nodes of the cache that workers share."`
	Top        topCmd        `cmd:"" help:"Show what comes from where, how quickly, and for which images."`
	Metrics    metricsCmd    `cmd:"" help:"Give the numbers of this machine to Prometheus."`
	Up         upCmd         `cmd:"" help:"Run a Lambda-compatible function platform on this machine."`
	Env        envCmd        `cmd:"" help:"Print what has a shell's AWS CLI and SDKs speak to the platform."`
	Deploy     deployCmd     `cmd:"" help:"Make a function, or give it new code."`
	Invoke     invokeCmd     `cmd:"" help:"Invoke a function."`
	Functions  functionsCmd  `cmd:"" help:"List functions."`
	Logs       logsCmd       `cmd:"" help:"Show what a function has written."`
	Delete     deleteCmd     `cmd:"" help:"Delete a function, or a version of one."`
	Coldstarts coldstartsCmd `cmd:"" help:"Show how long a function's cold starts took."`
	Base       baseCmd       `cmd:"" help:"Keep base images in the caches of all workers, ahead of the functions that are built on them."`
	Bench      benchCmd      `cmd:"" help:"Measure cold starts of the platform that runs."`
	Events     eventsCmd     `cmd:"" help:"Show, replay and remove events that were given up."`
	Fleet      fleetCmd      `cmd:"" help:"Have machines work together: list them, invite them, join."`
	Keys       keysCmd       `cmd:"" help:"Manage access keys of the platform."`
	Registry   registryCmd   `cmd:"" help:"Manage credentials for registries that functions come from."`
	Cluster    clusterCmd    `cmd:"" help:"Run the platform's server of records; back it up and restore it."`
	Builder    builderCmd    `cmd:"" help:"Run the platform's builder: it converts what is deployed."`
	Frontend   frontendCmd   `cmd:"" help:"Run the platform's frontend: the Lambda API."`
	Manager    managerCmd    `cmd:"" help:"Run the platform's manager: it gives invokes their instances."`
	Worker     workerCmd     `cmd:"" help:"Run the platform's worker: it runs instances."`
	Doctor     doctorCmd     `cmd:"" help:"Say what this machine has and lacks for run and mount, and how to mend it."`
	Version    versionCmd    `cmd:"" help:"Print the version."`
}

const description = `Thaw turns container images into devices that start before they have arrived.

First steps:

  thaw run debian:12 cat /etc/os-release      a container, at once
  thaw convert debian:12                      from a registry
  thaw convert oci:./layout:v1 --name app     from a folder
  thaw images
  thaw verify app --against oci:./layout:v1
  thaw export app app.ext4

IMAGE is a name, an image id, or the first digits of one (at least 4).

Exit status: 0 done, 1 failed, 2 wrong command line, 3 verify found damage; run has the program's.`

func main() {
	parts, err := fs.Sub(embedded(), partsDir)
	if err != nil {
		panic("thaw: " + err.Error()) // the name is wrong
	}
	os.Exit(mainWith(parts))
}

// mainWith is main with programs to hold.
func mainWith(parts fs.FS) int {
	return host.Aside(func() int {
		ctx, signals := catchSignals()
		defer signals.settle()
		return run(ctx, program{parts, signals}, os.Args[1:], os.Stdout, os.Stderr)
	})
}

// program is what the process is made of besides its command line.
type program struct {
	parts   fs.FS    // programs inside of this one
	signals *signals // nil if none are caught
}

// run is the program with its end as a number.
func run(ctx context.Context, p program, args []string, stdout, stderr io.Writer) int {
	if slices.Equal(args, []string{"--version"}) {
		args = []string{"version"}
	}
	root, g := commandLine(args)
	g.program = p
	out := &results{Writer: stdout}
	exited := -1
	parser, err := kong.New(root, kong.Name("thaw"), kong.Description(description),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.ExplicitGroups([]kong.Group{{Key: "globals", Title: "Flags of all verbs:"}}))
	if err != nil {
		panic("thaw: " + err.Error()) // the command line's description is wrong
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	if exited >= 0 { // --help
		return exited
	}
	if err == nil {
		g.stdout, g.stderr = out, stderr
		err = g.complete()
	}
	if err != nil {
		fmt.Fprintf(stderr, "thaw: %s (thaw --help)\n", text.Line(explainFlag(err, args).Error()))
		return exitUsage
	}
	if err := g.handOver(ctx, k.Command(), args); err != nil {
		return status(ctx, stderr, err)
	}
	verb, _, _ := strings.Cut(k.Command(), " ")
	if slices.Contains(lasting, verb) {
		g.dated = !isTerminal(stderr)
		if g.signals != nil {
			g.signals.adopt()
		}
	}
	k.BindTo(ctx, (*context.Context)(nil))
	err = k.Run(g)
	if err == nil || errors.Is(err, errDamaged) {
		err = cmp.Or(out.err, err)
	}
	return status(ctx, stderr, err)
}

// results is standard output. A report that could not be written is a failure,
// whoever wrote it and looked away.
type results struct {
	io.Writer
	err error
}

// Write writes p, and remembers the first failure.
func (r *results) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	if r.err == nil && err != nil {
		r.err = fmt.Errorf("writing the result: %w", err)
	}
	return n, err
}

// status tells the error, in one line, and gives the exit status.
func status(ctx context.Context, stderr io.Writer, err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errDamaged): // the report has said it
		return exitDamaged
	case ctx.Err() != nil && errors.Is(err, errConverting):
		fmt.Fprintln(stderr, "thaw: interrupted; what is stored stays for the next try")
		return exitInterrupted
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "thaw: interrupted")
		return exitInterrupted
	}
	hint := ""
	if errors.Is(err, keys.ErrRefused) {
		hint = " (do --key, --tenant and --origin belong together? if they do, what is named here was changed)"
	}
	fmt.Fprintf(stderr, "thaw: %s%s\n", text.Line(err.Error()), hint)
	if e := (*exitError)(nil); errors.As(err, &e) {
		return e.code
	}
	return 1
}

// lasting are the verbs that run for days: of what they write into a file, one
// wants to know when it was, and those that another has started end with it.
var lasting = []string{"up", "cluster", "builder", "frontend", "manager", "worker", "zone", "metrics"}

// logger writes what the user should know beside results.
func (g *Globals) logger() *slog.Logger {
	if g.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(g.stderr, nil))
	}
	return slog.New(slog.NewTextHandler(g.stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch {
		case a.Key != slog.TimeKey:
			return a
		case g.dated:
			return slog.Time(a.Key, a.Value.Time().UTC())
		}
		return slog.Attr{}
	}}))
}
