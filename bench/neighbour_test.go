package bench

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"

	"thaw/internal/testoci"
	"thaw/sdkhttp"
)

const (
	// neighbourRate is how many invokes a second the neighbour gets, for
	// neighbourTime at a time.
	neighbourRate = 100
	neighbourTime = 5 * time.Second
	// neighbourRounds alternate between the neighbour alone and beside the others.
	neighbourRounds = 3
	// hostileClients invoke the hostile function at once, each again and again, so
	// that there are as many instances of it.
	hostileClients = 4
	// hostileTimeout is the function's, in seconds: it is killed, and begins anew.
	hostileTimeout = 2
	// otherAccount is the hostile tenant's.
	otherAccount = "222222222222"
)

// BenchmarkNeighbour compares how long invokes of a function take at a steady
// rate while a function of another tenant does harm with how long they take
// alone. Both have one processor's memory. A bare server that echoes, a process of
// its own, is asked at the same rate at the same time: it shows what the machine
// does to anybody.
func BenchmarkNeighbour(b *testing.B) {
	asRoot(b)
	r := newRegion(b)
	timed(b, r.thaw, r.args("deploy", "neighbour", "oci:"+corpus(b, "fn-go"), "--memory", "1769")...)
	payload := []byte(`{"text":"` + strings.Repeat("x", 1000) + `"}`)
	h := r.hostile(b)
	ours, bare := r.caller(b, "neighbour", payload), newEcho(b, payload)
	measure := func() (invokes, echoes []time.Duration) {
		var work sync.WaitGroup
		work.Go(func() { echoes = steadily(b, bare, pace{neighbourRate, neighbourTime}) })
		invokes = steadily(b, ours, pace{neighbourRate, neighbourTime})
		work.Wait()
		return invokes, echoes
	}
	measure()
	worst := 0.0
	compare := func(name string) {
		var late, middle, bareLate Ratios
		var alone, beside []time.Duration
		for range neighbourRounds {
			invokes, echoes := measure()
			stop := h.attack(b, name)
			invokes2, echoes2 := measure()
			stop()
			late = append(late, slower(invokes, invokes2, .99))
			middle = append(middle, slower(invokes, invokes2, .5))
			bareLate = append(bareLate, slower(echoes, echoes2, .99))
			alone, beside = append(alone, quantile(invokes, .99)), append(beside, quantile(invokes2, .99))
		}
		say("neighbour of a function that %s, %d instances: p99 %v × (at most 3), median %v ×; p99 alone %v, beside %v; a bare echo's p99 %v ×",
			name, hostileClients, late, middle, slices.Max(alone), slices.Max(beside), bareLate)
		worst = max(worst, slices.Sorted(slices.Values(late))[len(late)/2])
	}
	for _, name := range slices.Sorted(maps.Keys(h.kinds)) {
		if only := os.Getenv("THAW_BENCH_KIND"); strings.Contains(name, only) {
			compare(name)
		}
	}
	b.ReportMetric(worst, "×p99")
}

// slower is how much longer the later ones take at a quantile.
func slower(before, after []time.Duration, q float64) float64 {
	return quantile(after, q).Seconds() / quantile(before, q).Seconds()
}

// newEcho starts the bare server.
func newEcho(b testing.TB, payload []byte) *caller {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	try(b, err)
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	try(b, err)
	defer file.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"=echo")
	cmd.ExtraFiles = []*os.File{file}
	life, err := cmd.StdinPipe()
	try(b, err, cmd.Start())
	b.Cleanup(func() {
		_ = life.Close()
		_ = cmd.Wait()
	})
	q, err := http.NewRequest(http.MethodPost, "http://"+l.Addr().String(), bytes.NewReader(payload))
	try(b, err)
	return newCaller(b, q, payload)
}

// serveEcho is the process: descriptor 3 is where it listens, and it ends with its
// standard input.
func serveEcho() error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(l, http.HandlerFunc(echo)) }()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// hostile is a tenant that means harm.
type hostile struct {
	c     *lambda.Client
	kinds map[string]string // by what it does: an event
}

// hostile makes the tenant's functions: packages, since images on this machine
// are not for it.
func (r *region) hostile(b testing.TB) *hostile {
	b.Helper()
	out, err := exec.Command(r.thaw, r.args("keys", "create", "--account", otherAccount, "--json")...).Output()
	try(b, err)
	var pair struct{ ID, Secret string }
	try(b, json.Unmarshal(out, &pair))
	h := &hostile{kinds: map[string]string{}}
	h.c = lambda.New(lambda.Options{
		Region: r.env["AWS_REGION"], BaseEndpoint: aws.String(r.env["AWS_ENDPOINT_URL"]), Retryer: aws.NopRetryer{}, HTTPClient: sdkhttp.Client(),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: pair.ID, SecretAccessKey: pair.Secret}, nil
		}),
	})
	code := zipped(b, "bootstrap", testoci.GoProgram(b))
	for name, do := range testoci.Hostile() {
		h.kinds[name] = `{"do":` + do + `}`
	}
	h.create(b, "hostile", code, nil)
	for name, do := range testoci.HostileInits() {
		h.kinds[name] = ""
		h.create(b, functionOf(name), code, map[string]string{"FUNCTION_INIT_DO": do})
	}
	return h
}

// functionOf names the function of a kind whose init does the harm.
func functionOf(kind string) string { return strings.ReplaceAll(kind, " ", "-") }

func (h *hostile) create(b testing.TB, name string, code []byte, env map[string]string) {
	b.Helper()
	variables := map[string]string{"FUNCTION_IGNORE_SIGTERM": "1"}
	maps.Copy(variables, env)
	in := &lambda.CreateFunctionInput{
		FunctionName: &name, Role: aws.String("arn:aws:iam::" + otherAccount + ":role/any"), Runtime: types.RuntimeProvidedal2023, Handler: aws.String("x"),
		Code: &types.FunctionCode{ZipFile: code}, MemorySize: aws.Int32(1769), Timeout: aws.Int32(hostileTimeout), Environment: &types.Environment{Variables: variables},
	}
	var err error
	for api := smithy.APIError(nil); ; { // until the frontend knows the new key
		if _, err = h.c.CreateFunction(b.Context(), in); !errors.As(err, &api) || api.ErrorCode() != "UnrecognizedClientException" {
			break
		}
	}
	try(b, err)
	try(b, lambda.NewFunctionActiveV2Waiter(h.c).Wait(b.Context(), &lambda.GetFunctionInput{FunctionName: &name}, 2*time.Minute))
}

// attack invokes a kind of harm again and again until stop is called, which waits
// until nothing of it runs.
func (h *hostile) attack(b testing.TB, kind string) (stop func()) {
	in := &lambda.InvokeInput{FunctionName: aws.String("hostile"), Payload: []byte(h.kinds[kind])}
	if len(in.Payload) == 0 {
		in = &lambda.InvokeInput{FunctionName: aws.String(functionOf(kind))}
	}
	over := make(chan struct{})
	var work, first sync.WaitGroup
	first.Add(hostileClients)
	for range hostileClients {
		work.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				if n == 0 {
					first.Done() // it is about to be sent
				}
				_, err := h.c.Invoke(context.Background(), in) // whatever it says: it is killed, most of the time
				if api := smithy.APIError(nil); err != nil && !errors.As(err, &api) {
					b.Errorf("%s: %v", kind, err)
					return
				}
			}
		})
	}
	first.Wait()
	return func() {
		close(over)
		work.Wait()
	}
}

// zipped is a package of one file.
func zipped(b testing.TB, name string, data []byte) []byte {
	b.Helper()
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	head := &zip.FileHeader{Name: name, Method: zip.Deflate}
	head.SetMode(0o755)
	w, err := z.CreateHeader(head)
	try(b, err)
	_, err = w.Write(data)
	try(b, err, z.Close())
	return out.Bytes()
}
