package main

import (
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	ocitypes "github.com/google/go-containerregistry/pkg/v1/types"

	"thaw/internal/testoci"
)

// watching is an external extension that tells of its events, unless EXTENSION says
// how it fails.
const watching = `#!/bin/sh
api=http://$AWS_LAMBDA_RUNTIME_API/2020-01-01/extension
id=$(curl -sS -D - -o /dev/null -H "Lambda-Extension-Name: ${0##*/}" -d '{"events":["INVOKE","SHUTDOWN"]}' "$api/register" |
	tr -d '\r' | sed -n 's/^Lambda-Extension-Identifier: //Ip')
ask() { curl -sS -H "Lambda-Extension-Identifier: $id" -H 'Lambda-Extension-Function-Error-Type: Extension.Any' "$@"; }
if [ "$EXTENSION" = 'init error' ]; then
	ask -o /dev/null -d '{}' "$api/init/error"
	exit 3
fi
while event=$(ask "$api/event/next"); do
	echo "watcher: $event"
	case $EXTENSION,$event in
	'exit error,'*) ask -o /dev/null -d '{}' "$api/exit/error"; exit 4 ;;
	crash,*) exit 5 ;;
	*SHUTDOWN*) exit ;;
	esac
done
`

// extended gives an image as it is, and in /opt/extensions what watches it.
func extended(t *testing.T, image string) string {
	t.Helper()
	index, err := layout.ImageIndexFromPath(strings.TrimPrefix(image, "oci:"))
	try(t, err)
	list, err := index.IndexManifest()
	try(t, err)
	img, err := index.Image(list.Manifests[0].Digest)
	try(t, err)
	file := testoci.File("opt/extensions/watcher", []byte(watching))
	file.Mode = 0o755
	files := testoci.Tar(t, testoci.Dir("opt"), testoci.Dir("opt/extensions"), file)
	img, err = mutate.AppendLayers(img, static.NewLayer(files, ocitypes.OCIUncompressedLayer))
	try(t, err)
	dir := filepath.Join(t.TempDir(), "watched")
	to, err := layout.Write(dir, empty.Index)
	try(t, err)
	try(t, to.AppendImage(img))
	return "oci:" + dir
}

// extensions runs functions whose images have an extension: one that works, and
// those that fail, each in its way.
func (k *contract) extensions(t *testing.T) {
	image := extended(t, corpusLayout(t, "fn-shell"))
	kinds := map[string]string{"init error": "Extension.InitError", "exit error": "Extension.ExitError", "crash": "Extension.Crash"}
	for kind := range kinds {
		k.order(t, strings.ReplaceAll(kind, " ", "-"), timeout(600), entryPoint(image), env("EXTENSION", kind))
	}
	k.order(t, "watched", timeout(600), entryPoint(image), env("EXTENSION", ""))
	program := testoci.File("function", sample.data)
	program.Mode = 0o755
	files := testoci.Tar(t, program, testoci.Dir("opt"), testoci.Dir("opt/extensions"), testoci.File("opt/extensions/text", []byte("no program")))
	k.order(t, "launch", timeout(60), entryPoint(testoci.Layout(t, filepath.Join(t.TempDir(), "text"), nil, files), "/function"))
	kinds["launch"] = "Extension.LaunchError"

	k.active(t, "watched")
	a := k.invoke(t, "watched", `"x"`)
	if string(a.Payload) != `"x"` || a.FunctionError != nil || !strings.Contains(a.log, `watcher: {"eventType":"INVOKE"`) || !strings.Contains(a.log, `"requestId":"`+a.id+`"`) {
		t.Errorf("with an extension: %s\n%q", a.Payload, a.log)
	}
	a.reported(t, true)
	if _, err := k.c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{
		FunctionName: aws.String("watched"), Environment: &types.Environment{Variables: map[string]string{"EXTENSION": "", "NEW": "1"}},
	}); err != nil {
		t.Fatal(err)
	}
	k.until(t, "the extension hears of the end", func() bool {
		return regexp.MustCompile(`watcher: {"eventType":"SHUTDOWN",.*"shutdownReason":"spindown"`).MatchString(k.must("logs", "watched"))
	})
	for kind, want := range kinds {
		name := strings.ReplaceAll(kind, " ", "-")
		k.active(t, name)
		a := k.invoke(t, name, `{"do":{"sleep_ms":500000}}`) // it is ended before
		var body struct{ ErrorType, ErrorMessage string }
		if err := decode(a.Payload, &body); err != nil || aws.ToString(a.FunctionError) != "Unhandled" || body.ErrorType != want ||
			!strings.HasPrefix(body.ErrorMessage, "RequestId: "+a.id+" Error: ") || !strings.Contains(a.log, "Status: error\tError Type: "+want) {
			t.Errorf("%s: %v %s\nlog %q", kind, aws.ToString(a.FunctionError), a.Payload, a.log)
		}
	}
}

// lingers: an invoke lasts until the function asks for the next, not until it has
// answered.
func (k *contract) lingers(t *testing.T) {
	const script = `api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
while curl -sS -D /tmp/headers -o /tmp/event $api/next; do
	id=$(tr -d '\r' </tmp/headers | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //Ip')
	curl -sS -o /dev/null --data-binary @/tmp/event $api/$id/response
	sleep 0.3
	echo done
done`
	k.create(t, "lingers", timeout(60), entryPoint(corpusLayout(t, "fn-shell"), "/bin/sh", "-c", script))
	for range 2 {
		a := k.invoke(t, "lingers", `"x"`)
		m := report().FindStringSubmatch(a.log)
		if m == nil || string(a.Payload) != `"x"` || !strings.Contains(a.log, "\ndone\nEND") {
			t.Fatalf("%s, log %q", a.Payload, a.log)
		}
		if took, err := strconv.ParseFloat(m[1], 64); err != nil || took < 300 {
			t.Errorf("%v: %q", err, m[0])
		}
	}
}
