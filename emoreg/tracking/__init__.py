"""Write-only observers of trials and studies: TensorBoard."""
