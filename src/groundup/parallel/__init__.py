"""Many ranks: what is done to a model from outside so that several processes train it as one would."""
