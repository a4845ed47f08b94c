package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"golang.org/x/sync/errgroup"

	"thaw/internal/testoci"
	"thaw/sdkhttp"
)

// Memory, tenants and what functions reach, of a whole platform.
func TestContractReach(t *testing.T) {
	k := newContract(t, "--budget=6GiB") // for 32 instances of 128 MB
	t.Run("memory", k.memory)            // first: the peak is since the start
	k.order(t, "f", timeout(120))        // it has a second for each address
	k.active(t, "f")
	t.Run("serial", k.serial)
	t.Run("tail", k.tail)
	t.Run("boto3", k.boto)
	t.Run("network", k.network)
	t.Run("calls", k.calls)
	t.Run("tenants", k.tenants)
}

// memoryOf is a line of a process's status in bytes.
func memoryOf(t *testing.T, pid int, name string) (n int64) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "\n"+name+":")
	if _, err := fmt.Sscanf(rest, "%d kB", &n); !ok || err != nil {
		t.Fatalf("no %s of process %d: %v", name, pid, err)
	}
	return n << 10
}

// memory invokes with the longest payloads, all at once, and looks at what
// frontend and worker have taken, the pages of their program's file included.
func (k *contract) memory(t *testing.T) {
	const callers, payload = 32, 6 << 20
	k.create(t, "echo", func(in *lambda.CreateFunctionInput) { in.MemorySize, in.Timeout = aws.Int32(128), aws.Int32(120) })
	k.invoke(t, "echo", `1`)
	event := jsonText(payload)
	var work errgroup.Group
	var ready sync.WaitGroup
	ready.Add(callers)
	for range callers {
		work.Go(func() error {
			ready.Done()
			ready.Wait()
			out, err := k.c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("echo"), Payload: event})
			if err == nil && (out.FunctionError != nil || len(out.Payload) != payload) {
				err = fmt.Errorf("%d bytes, %v: %.300s", len(out.Payload), aws.ToString(out.FunctionError), out.Payload)
			}
			return err
		})
	}
	if err := work.Wait(); err != nil {
		t.Error(err)
	}
	var all int64
	for _, role := range []string{"frontend", "worker"} {
		pid := k.role(t, role)
		peak := memoryOf(t, pid, "VmHWM")
		t.Logf("%s: peak %d MiB", role, peak>>20)
		all += peak
	}
	if most := int64(callers*2*payload + 100e6); all > most {
		t.Errorf("frontend and worker have taken %d MB, want %d MB at most", all/1e6, most/1e6)
	}
}

// serial invokes a thousand times, one after another: each is sent as soon as the
// one before is answered, and all are answered by one instance.
func (k *contract) serial(t *testing.T) {
	first := k.told(t, "f", `{}`)
	for range 998 {
		k.invoke(t, "f", `1`)
	}
	if last := k.told(t, "f", `{}`); last.Instance != first.Instance || last.Invokes != first.Invokes+999 {
		t.Errorf("instance %s had %d invokes of 1,000, %s the last", first.Instance, last.Invokes, last.Instance)
	}
}

// boto runs a script of boto3's users with each Python that has it.
func (k *contract) boto(t *testing.T) {
	ran := ""
	for _, python := range []string{"python3", "/usr/bin/python3"} { // PATH's may be another
		version, err := exec.Command(python, "-c", "import boto3; print(boto3.__version__)").Output()
		if err != nil || string(version) == ran {
			continue
		}
		ran = string(version)
		cmd := exec.CommandContext(t.Context(), python, "testdata/boto.py", k.layout)
		cmd.Env = k.env
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "all is well") {
			t.Errorf("%s: %v\n%s", python, err, out)
		}
		if !strings.Contains(string(out), "with streams") {
			t.Logf("NOT TESTED: streams with boto3 %s, which has not got them", strings.TrimSpace(ran))
		}
	}
	if ran == "" {
		t.Skip("NOT TESTED: boto3 is not installed (Debian: python3-boto3)")
	}
}

// network asks for what no function is to reach.
func (k *contract) network(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0") // of this machine, on all its addresses
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	never := []string{"169.254.169.254:80", "10.0.0.1:80", "172.16.0.1:80", "192.168.0.1:80", "127.0.0.1:" + port, strings.TrimPrefix(k.endpoint, "http://")}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			never = append(never, net.JoinHostPort(n.IP.String(), port))
		}
	}
	// The worker's own port, and every other role's, by the gateway's name too.
	for _, at := range k.listening(t) {
		never = append(never, at, "thaw.internal:"+at[strings.LastIndex(at, ":")+1:])
	}
	ask, err := json.Marshal(map[string]any{"dial": never, "get": []string{"http://thaw.internal:9000/2015-03-31/functions"}, "resolve": []string{"thaw.internal"}})
	if err != nil {
		t.Fatal(err)
	}
	told := k.told(t, "f", string(ask))
	for _, to := range never {
		if got := told.Dial[to]; !strings.HasPrefix(got, "error: ") {
			t.Errorf("a function reaches %s: %q", to, got)
		}
	}
	if got := told.Get["http://thaw.internal:9000/2015-03-31/functions"]; !strings.HasPrefix(got, "403") || !strings.Contains(got, "Missing Authentication Token") {
		t.Errorf("the API through the gateway, without a signature: %.300s", got)
	}
	t.Logf("%d addresses are refused; thaw.internal is %s", len(never), told.Resolve["thaw.internal"])
}

// listening gives where the roles listen.
func (k *contract) listening(t *testing.T) (all []string) {
	t.Helper()
	for role, pid := range children(k.up.cmd.Process.Pid) {
		if role == "frontend" { // the door leads there
			continue
		}
		for _, at := range listeners(t, pid) {
			if strings.HasPrefix(at, "127.") {
				all = append(all, at)
			}
		}
	}
	if len(all) == 0 {
		t.Error("no role listens")
	}
	return all
}

// listeners are the TCP addresses where a process listens.
func listeners(t *testing.T, pid int) (all []string) {
	t.Helper()
	sockets := map[string]bool{}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the pattern is right
	for _, fd := range fds {
		to, _ := os.Readlink(fd) // it may be closed by now
		if inode, ok := strings.CutPrefix(to, "socket:["); ok {
			sockets[strings.TrimSuffix(inode, "]")] = true
		}
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		var ip, port uint32
		if len(f) < 10 || f[3] != "0A" || !sockets[f[9]] {
			continue
		}
		if _, err := fmt.Sscanf(f[1], "%08X:%04X", &ip, &port); err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%d.%d.%d.%d:%d", byte(ip), byte(ip>>8), byte(ip>>16), byte(ip>>24), port))
	}
	return all
}

// calls has a function invoke another with the SDK, and uses its keys outside.
func (k *contract) calls(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "caller"), "thaw/cmd/thaw/testdata/caller")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, "caller"))
	if err != nil {
		t.Fatal(err)
	}
	file := testoci.File("caller", data)
	file.Mode = 0o755
	k.create(t, "caller", timeout(60), entryPoint(testoci.Layout(t, t.TempDir(), nil, testoci.Tar(t, file)), "/caller"))
	if a := k.invoke(t, "caller", `{"function":"f","payload":{"from":"caller"}}`); string(a.Payload) != `{"from":"caller"}` || a.FunctionError != nil {
		t.Errorf("a function that invokes another: %v %s\n%s", aws.ToString(a.FunctionError), a.Payload, a.log)
	}
	for _, name := range []string{"none", "111111111111:function:f"} {
		a := k.invoke(t, "caller", `{"function":"`+name+`"}`)
		if aws.ToString(a.FunctionError) == "" || !strings.Contains(string(a.Payload), "ResourceNotFoundException") && !strings.Contains(string(a.Payload), "AccessDeniedException") {
			t.Errorf("a function that invokes %s: %s", name, a.Payload)
		}
	}
}

// keyed gives a client with other keys. It shares nothing with others: a signer
// keeps what it has derived of a secret by the key's id alone.
func (k *contract) keyed(id, secret, token string) *lambda.Client {
	return lambda.New(lambda.Options{
		Region: "us-east-1", BaseEndpoint: &k.endpoint, Retryer: aws.NopRetryer{}, HTTPClient: sdkhttp.Client(),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: id, SecretAccessKey: secret, SessionToken: token}, nil
		}),
	})
}

// tenants tries another account's keys, a function's own, and forged ones.
func (k *contract) tenants(t *testing.T) {
	var pair struct{ ID, Secret string }
	if err := decode([]byte(k.must("keys", "create", "--account", "111111111111", "--json")), &pair); err != nil {
		t.Fatal(err)
	}
	other := k.keyed(pair.ID, pair.Secret, "")
	k.until(t, "the new key is known", func() bool {
		_, err := other.ListFunctions(t.Context(), &lambda.ListFunctionsInput{})
		return err == nil
	})
	if out, err := other.ListFunctions(t.Context(), &lambda.ListFunctionsInput{}); err != nil || len(out.Functions) != 0 {
		t.Errorf("the other account sees %+v, %v", out, err)
	}
	const arn = "arn:aws:lambda:us-east-1:000000000000:function:f"
	get := func(c *lambda.Client, name string) error {
		_, err := c.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: &name})
		return err
	}
	invoke := func(c *lambda.Client, name string) error {
		_, err := c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: &name, Payload: []byte(`1`)})
		return err
	}
	refused(t, get(other, "f"), 404, "ResourceNotFoundException", "arn:aws:lambda:us-east-1:111111111111:function:f")
	refused(t, invoke(other, "f"), 404, "ResourceNotFoundException", "arn:aws:lambda:us-east-1:111111111111:function:f")
	refused(t, get(other, arn), 403, "AccessDeniedException", "")
	refused(t, invoke(other, arn), 403, "AccessDeniedException", "")
	_, err := other.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String(arn)})
	refused(t, err, 403, "AccessDeniedException", "")
	// An image on the machine is the machine's owner's.
	if _, err := other.CreateFunction(t.Context(), &lambda.CreateFunctionInput{
		FunctionName: aws.String("f"), Role: aws.String("arn:aws:iam::111111111111:role/any"), PackageType: "Image", Code: &types.FunctionCode{ImageUri: &k.layout},
	}); err != nil {
		t.Fatal(err)
	}
	k.until(t, "another account's function of an image of this machine fails", func() bool {
		out, err := other.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f")})
		return err == nil && out.State == "Failed" && strings.Contains(aws.ToString(out.StateReason), "are not for account 111111111111")
	})
	k.invoke(t, "f", `1`) // of the same name, and of the first account still
	k.apart(t, pair.ID, pair.Secret)
	k.sessions(t, invoke)
}

// apart looks at what both accounts have of a function of one name: the log of
// one is not the other's, and each key is listed with its account, without secret.
func (k *contract) apart(t *testing.T, id, secret string) {
	t.Helper()
	theirs := *k.region
	theirs.env = append(slices.Clone(k.env), "AWS_ACCESS_KEY_ID="+id, "AWS_SECRET_ACCESS_KEY="+secret)
	count := []string{"logs", "filter-log-events", "--log-group-name", "/aws/lambda/f", "--query", "length(events)"}
	if out := strings.TrimSpace(k.mustAWS(count...)); out == "0" {
		t.Error("the first account's function has logged nothing")
	}
	if out := strings.TrimSpace(theirs.mustAWS(count...)); out != "0" {
		t.Errorf("the other account reads %s lines of a log", out)
	}
	list := k.must("keys", "list")
	if !strings.Contains(list, id+"  111111111111  ") || strings.Count(list, "  000000000000  ") != 1 || strings.Contains(list, secret) {
		t.Errorf("keys list: %s", strings.ReplaceAll(list, secret, "SECRET"))
	}
}

// sessions uses a function's own keys, and what can be made of them.
func (k *contract) sessions(t *testing.T, invoke func(*lambda.Client, string) error) {
	env := k.told(t, "f", `{"env":["AWS_ACCESS_KEY_ID","AWS_SECRET_ACCESS_KEY","AWS_SESSION_TOKEN","AWS_ENDPOINT_URL"]}`).Env
	id, secret, token := env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env["AWS_SESSION_TOKEN"]
	if env["AWS_ENDPOINT_URL"] != "http://thaw.internal:9000" || !strings.HasPrefix(id, "ASIA") {
		t.Errorf("a function's environment has the endpoint %s and the key %s", env["AWS_ENDPOINT_URL"], id)
	}
	if err := invoke(k.keyed(id, secret, token), "f"); err != nil {
		t.Errorf("a function's own keys: %v", err)
	}
	head, tail, _ := strings.Cut(token, ".")
	text, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		t.Fatal(err)
	}
	forged := base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(text), "000000000000", "111111111111", 1))) + "." + tail
	for name, c := range map[string]struct {
		client *lambda.Client
		kind   string
	}{
		"another account's": {k.keyed(id, secret, forged), "UnrecognizedClientException"},
		"cut short":         {k.keyed(id, secret, token[:len(token)-2]), "UnrecognizedClientException"},
		"missing":           {k.keyed(id, secret, ""), "UnrecognizedClientException"},
		"of another key":    {k.keyed("ASIA"+strings.Repeat("A", 16), secret, token), "UnrecognizedClientException"},
		"wrong secret":      {k.keyed(id, strings.Repeat("0", 64), token), "InvalidSignatureException"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, invoke(c.client, "f"), 403, c.kind, "") })
	}
}
