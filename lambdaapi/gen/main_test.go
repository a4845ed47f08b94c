package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is committed is what the generator writes.
func TestGenerated(t *testing.T) {
	model, err := find(modelModule, modelFile)
	if err != nil {
		t.Fatal(err)
	}
	files, err := generate(model, "overlay.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what go generate writes (%v)", name, err)
		}
	}
}

// The casing of messages differs by error; these are known from AWS's answers.
func TestCasing(t *testing.T) {
	model, err := find(modelModule, modelFile)
	if err != nil {
		t.Fatal(err)
	}
	m, err := load(model, "overlay.json")
	if err != nil {
		t.Fatal(err)
	}
	for member, names := range map[string]string{
		"Message": "ResourceNotFound Service SnapStart SnapStartNotReady SnapStartTimeout KMSDisabled EC2Unexpected EFSIO ENILimitReached InvalidRuntime InvalidZipFile " +
			"InvalidSubnetID InvalidSecurityGroupID InvalidCodeSignature CodeVerificationFailed CodeSigningConfigNotFound NoPublishedVersion RecursiveInvocation ResourceInUse SubnetIPAddressLimitReached",
		"message": "InvalidParameterValue InvalidRequestContent ResourceConflict ResourceNotReady TooManyRequests PreconditionFailed RequestTooLarge SerializedRequestEntityTooLarge " +
			"UnsupportedMediaType CodeStorageExceeded PolicyLengthExceeded ProvisionedConcurrencyConfigNotFound",
	} {
		for _, name := range strings.Fields(names) {
			s := m.Shapes[name+"Exception"]
			if s == nil || s.Members[member] == nil {
				t.Errorf("%s has no %s", name, member)
			}
		}
	}
	if err := m.prune(answered); err != nil || len(m.Operations) != 59 {
		t.Errorf("%d operations, %v", len(m.Operations), err)
	}
}
