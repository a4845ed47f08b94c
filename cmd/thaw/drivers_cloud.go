package main

import (
	"thaw/keys"
	"thaw/keys/kms"
	"thaw/origin"
	"thaw/origin/cloud"
)

// originDrivers opens the origins that are no folder.
func originDrivers() []origin.Option {
	var all []origin.Option
	for _, scheme := range []string{"s3", "gs", "azblob"} {
		all = append(all, origin.WithDriver(scheme, cloud.Open))
	}
	return all
}

// keyDrivers opens the keys that are no file.
func keyDrivers() []keys.Option {
	var all []keys.Option
	for _, scheme := range []string{"awskms", "gcpkms", "azurekeyvault", "hashivault"} {
		all = append(all, keys.WithDriver(scheme, kms.Open))
	}
	return all
}
