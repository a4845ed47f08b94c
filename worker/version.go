package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"thaw/host"
	"thaw/invokewire"
	"thaw/sandbox"
)

// initPath is thaw-init's in every root.
const initPath = "/.thaw/init"

// root is the root file system that the instances of a function version share:
// its image, mounted, under the skeleton. It is made once, and taken down when it
// has had no instance for a while.
type root struct {
	key    string
	made   chan struct{} // closed once what follows is set
	err    error
	image  *host.Use
	end    *os.File // readable once the image's agent has ended
	keeper *host.Instance
	path   string
	config imageConfig
	stages stages // of making it

	recording recording
	watching  sync.WaitGroup // of watch

	// roots.mu guards what follows.
	users int
	idle  time.Time // since when it has had none
}

// roots are those of a worker. It is safe for concurrent use.
type roots struct {
	w *Worker

	mu  sync.Mutex // guards what follows, and users and idle of each
	all map[string]*root
	old []*root // whose agent has ended
}

// rootKey tells which function versions can share a root.
func rootKey(s *invokewire.Spec) string {
	return fmt.Sprintf("%s/%s/%s/%t", s.Tenant, s.Root, s.Image, s.Egress)
}

// use gives the version's root, and makes it if there is none, with an agent that
// blank gives, if it does. Those who come meanwhile wait for it. The caller
// releases it. fresh: this use has made it.
func (r *roots) use(ctx context.Context, s *invokewire.Spec, blank func() *host.Blank) (v *root, fresh bool, err error) {
	key := rootKey(s)
	r.mu.Lock()
	v = r.all[key]
	if v != nil && v.dead() {
		r.retire(v)
		v = nil
	}
	if fresh = v == nil; fresh {
		v = &root{key: key, made: make(chan struct{})}
		r.all[key] = v
		r.w.work.Go(func() { r.make(v, s, blank) }) // not for this caller alone
	}
	v.users++
	r.mu.Unlock()
	select {
	case <-v.made:
		err = v.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		r.release(v)
		return nil, false, err
	}
	return v, fresh, nil
}

// errAgent says that nobody serves the image's device any more.
var errAgent = errors.New("the agent that served the image has ended")

// dead tells whether nobody can use the root any more. It does not wait.
func (v *root) dead() bool {
	select {
	case <-v.made:
		return v.err != nil || v.lost()
	default:
		return false
	}
}

// lost tells whether the agent has ended, of a root that is made and in use.
func (v *root) lost() (ended bool) {
	conn, err := v.end.SyscallConn()
	if err == nil {
		err = conn.Control(func(fd uintptr) { ended = readable(fd) })
	}
	return ended && err == nil
}

// readable asks without waiting.
func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, _ := unix.Poll(fds, 0)
	return n > 0
}

// watch ends the instances of a root whose agent ends: what they have not read yet
// they never can. It returns then, or when the root is taken down.
func (r *roots) watch(v *root) {
	if !awaitEnd(v.end) {
		return // it is taken down
	}
	r.mu.Lock()
	r.retire(v)
	r.mu.Unlock()
	r.w.log.Warn("an agent has ended: the instances whose image it served are ended", "image", v.keeper.ImageID)
	r.w.endOn(v)
}

// retire keeps a root from being used, until nobody does any more. mu is held.
func (r *roots) retire(v *root) {
	if r.all[v.key] == v {
		delete(r.all, v.key)
		r.old = append(r.old, v)
	}
}

func (r *roots) make(v *root, s *invokewire.Spec, blank func() *host.Blank) {
	defer close(v.made)
	ctx, cancel := context.WithTimeout(r.w.life, startLimit)
	defer cancel()
	if v.err = v.build(ctx, r.w, s, blank); v.err == nil {
		v.watching.Go(func() { r.watch(v) })
		return
	}
	v.err = errors.Join(v.err, v.takeDown(context.WithoutCancel(ctx), r.w.o.Host))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[v.key] == v {
		delete(r.all, v.key) // the next start tries again
	}
}

func (v *root) build(ctx context.Context, w *Worker, s *invokewire.Spec, blank func() *host.Blank) error {
	watch := newStopwatch()
	image, config, err := w.o.Image(ctx, s.Tenant, s.Image, s.Root)
	if err != nil {
		return fmt.Errorf("image %s: %w", s.Image, err)
	}
	if v.config, err = parseImage(config); err != nil {
		return err
	}
	watch.lap("manifest")
	image.Agent, image.Blank, image.Lap = w.o.Agent, blank, watch.lap
	image.Start, image.Record = watch.began, w.o.KeepTrace != nil
	if v.image, err = w.o.Host.UseImage(ctx, w.fetcher, image); err != nil {
		return err
	}
	v.recording.on = image.Record && v.image.Made()
	if v.end, err = w.o.Host.AgentEnd(v.image); err == nil && v.end == nil {
		err = errAgent
	}
	if err != nil {
		return err
	}
	watch.lap("image")
	if v.keeper, err = w.o.Host.NewInstance(host.KindRoot, v.image, w.fetcher); err != nil {
		return err
	}
	v.keeper.Image, v.keeper.ImageID = image.Name, image.ID
	entries, err := w.skeletonEntries(s.Egress)
	if err == nil && len(w.o.CABundle) > 0 {
		err = w.o.Host.Interruptible(ctx, v.image, func() error {
			env, err := trust(w.o.Host.Rootfs(v.image, true), w.o.CABundle, entries)
			v.config.Env = slices.Concat(env, v.config.Env) // the image's own win
			return w.o.Host.Explain(ctx, v.image, err)
		})
	}
	if err != nil {
		return err
	}
	skeleton, err := v.keeper.MakeSkeleton(entries, w.links())
	if err == nil {
		err = v.keeper.Save()
	}
	if err == nil {
		v.path, err = v.keeper.MountRoot(v.image, skeleton)
	}
	watch.lap("root")
	v.stages = watch.stages
	return err
}

// errNoNetwork says that functions cannot have what their configuration says.
var errNoNetwork = errors.New("the function has a network, and this worker has none for functions")

// GatewayName is how functions that have a network call the gateway, through
// which they reach the doors of network.Options.
const GatewayName = "thaw.internal"

// skeletonEntries is what the platform puts above each image: where the runtime
// mounts, what programs read of the network, and thaw-init's folder.
func (w *Worker) skeletonEntries(egress bool) (map[string]string, error) {
	entries := map[string]string{
		"proc/": "", "dev/": "", "sys/": "", "tmp/": "", "etc/": "", ".thaw/": "",
		"etc/hosts":       "127.0.0.1\tlocalhost sandbox sandbox.localdomain\n",
		"etc/resolv.conf": "# no network\n",
	}
	if !egress {
		return entries, nil
	}
	if w.o.Network == nil {
		return nil, errNoNetwork
	}
	gateway, err := w.o.Network.Gateway()
	entries["etc/hosts"] += fmt.Sprintf("%s\t%s\n", gateway, GatewayName)
	entries["etc/resolv.conf"] = fmt.Sprintf("nameserver %s\noptions ndots:0\n", gateway)
	return entries, err
}

// links is what skeletons have of the worker's files.
func (w *Worker) links() map[string]string { return map[string]string{initPath[1:]: w.program} }

// makeBare makes a skeleton with thaw-init alone.
func (w *Worker) makeBare(keeper *host.Instance) (string, error) {
	entries, err := w.skeletonEntries(false)
	if err != nil {
		return "", err
	}
	entries[sandbox.RootPlace[1:]+"/"] = ""
	return keeper.MakeSkeleton(entries, w.links())
}

// release gives a root back.
func (r *roots) release(v *root) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v.users--; v.users == 0 {
		v.idle = time.Now()
	}
}

// drop takes down the roots that match and that nobody uses, and old ones.
func (r *roots) drop(ctx context.Context, match func(*root) bool) error {
	var gone []*root
	r.mu.Lock()
	for key, v := range r.all {
		if v.users == 0 && match(v) {
			delete(r.all, key)
			gone = append(gone, v)
		}
	}
	r.old = slices.DeleteFunc(r.old, func(v *root) bool {
		if v.users == 0 {
			gone = append(gone, v)
		}
		return v.users == 0
	})
	r.mu.Unlock()
	errs := make([]error, len(gone))
	var ends errgroup.Group
	ends.SetLimit(endsAtOnce) // one may take seconds: somebody else's mount namespace keeps what is unmounted here
	for n, v := range gone {
		ends.Go(func() error {
			<-v.made
			if v.err == nil {
				errs[n] = v.takeDown(ctx, r.w.o.Host)
			}
			return nil
		})
	}
	_ = ends.Wait() // errs has them all
	return errors.Join(errs...)
}

func (v *root) takeDown(ctx context.Context, h *host.Host) (err error) {
	if v.end != nil {
		_ = v.end.Close() // what ends the agent from now on is no news
		v.watching.Wait()
	}
	if v.keeper != nil {
		err = v.keeper.End(ctx)
	}
	if v.image != nil {
		err = errors.Join(err, h.ReleaseImage(ctx, v.image))
	}
	return err
}
