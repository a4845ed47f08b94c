package bench

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
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
// alone. Both have one processor's memory.
func BenchmarkNeighbour(b *testing.B) {
	asRoot(b)
	r := newRegion(b)
	timed(b, r.thaw, r.args("deploy", "neighbour", "oci:"+corpus(b, "fn-go"), "--memory", "1769")...)
	payload := []byte(`{"text":"` + strings.Repeat("x", 1000) + `"}`)
	h := r.hostile(b)
	measure := func() (p50, p99 time.Duration) {
		all := steadily(b, r.caller(b, "neighbour", payload), pace{neighbourRate, neighbourTime})
		return quantile(all, .5), quantile(all, .99)
	}
	measure()
	worst := 0.0
	compare := func(name string) {
		var ratios, medians Ratios
		var alone, beside []time.Duration
		for range neighbourRounds {
			middle, late := measure()
			stop := h.attack(b, name)
			middle2, late2 := measure()
			stop()
			alone, beside = append(alone, late), append(beside, late2)
			ratios = append(ratios, late2.Seconds()/late.Seconds())
			medians = append(medians, middle2.Seconds()/middle.Seconds())
		}
		say("neighbour of a function that %s, %d instances: p99 %v ×, median %v × (at most 3); p99 alone %v, beside %v", name, hostileClients, ratios, medians, slices.Max(alone), slices.Max(beside))
		worst = max(worst, slices.Sorted(slices.Values(ratios))[len(ratios)/2])
	}
	for _, name := range slices.Sorted(maps.Keys(h.kinds)) {
		if only := os.Getenv("THAW_BENCH_KIND"); strings.Contains(name, only) {
			compare(name)
		}
	}
	b.ReportMetric(worst, "×p99")
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
